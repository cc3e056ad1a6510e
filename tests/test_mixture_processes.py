"""Fits of mixtures of Gaussians in several processes, checkpoints and fits that are killed, and the command under torchrun's variables."""

import json
import os
import signal

import interpreters
import numpy as np
import pytest
import torch
from distributed_runs import environment, free_port, started_directly
from mixture_cases import KINDS, blobs
from one_line_errors import one_line

from vae_fast import cli
from vae_fast.errors import FileError, RunError
from vae_fast.models import BayesianMixtureOfGaussians, MixtureOfGaussians, _mixture_data
from vae_fast.training.distributed import leave

pytestmark = pytest.mark.filterwarnings("ignore::vae_fast.errors.ConvergenceWarning")

N, D, K = 6000, 3, 4
#: name: arguments of the mixture, how the data come
CASES = {
    **{f"{kind}": ({"covariance_type": kind}, "file") for kind in KINDS},
    "k-means++": ({"covariance_type": "diag", "init_params": "k-means++"}, "file"),
    "random": ({"covariance_type": "diag", "init_params": "random"}, "file"),
    "random_from_data": ({"covariance_type": "diag", "init_params": "random_from_data", "reseed_dead": True}, "file"),
    "float32": ({"covariance_type": "diag", "dtype": torch.float32}, "file"),
    "tensor": ({"covariance_type": "full", "n_init": 2}, "tensor"),
    "adam": ({"covariance_type": "full", "method": "adam"}, "file"),
    "adam in batches": ({"covariance_type": "diag", "method": "adam", "batch_size": 500}, "tensor"),
    "adam in slices": ({"covariance_type": "diag", "method": "adam", "batch_size": 500}, "file"),
}


def data(folder, how):
    mapped = np.load(folder / "x.npy", mmap_mode="r")
    return mapped if how == "file" else torch.from_numpy(np.array(mapped))


def fitted(folder, options, how, **more):
    mixture = MixtureOfGaussians(K, random_state=3, max_iter=8, tol=0.0, **options).fit(data(folder, how), **more)
    return learned(mixture)


def learned(mixture):
    numbers = {name: getattr(mixture, name) for name in ("weights_", "means_", "covariances_")}
    return numbers | {"bounds": np.array(mixture.lower_bounds_), "n_iter": mixture.n_iter_, "converged": mixture.converged_}


def partial(folder):
    mixture = MixtureOfGaussians(K, covariance_type="diag", random_state=0)
    for batch in data(folder, "tensor").split(1500):
        mixture.partial_fit(batch)
    return learned(mixture)


def bayesian(folder):
    options = {"covariance_type": "full", "random_state": 3, "max_iter": 8, "tol": 0.0}
    return learned(BayesianMixtureOfGaussians(K, **options).fit(data(folder, "file")))


def said(act):
    try:
        act()
    except (ValueError, RunError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def work(rank, size, folder, port):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo")
    _mixture_data._SAMPLE = 500  # so that there is more than the sample
    _mixture_data._LEAST_ELEMENTS = 2**12  # and as many blocks as processes
    found = {name: fitted(folder, *case) for name, case in CASES.items()}
    found |= {"partial_fit": partial(folder), "bayesian": bayesian(folder)}
    if size == 2:
        calls = []
        halves = torch.utils.data.DataLoader(data(folder, "tensor")[rank::2], batch_size=700)
        start = {"means_init": data(folder, "tensor")[:K].numpy(), "covariance_type": "diag"}
        options = {"max_iter": 8, "tol": 0.0, "random_state": 0}
        found["batches"] = learned(MixtureOfGaussians(K, **start, **options).fit(halves, callback=lambda *_: calls.append(1)))
        found["calls"] = len(calls)
        bad = data(folder, "tensor").clone()
        bad[-1, 1] = torch.nan
        found["errors"] = {
            "nan": said(lambda: MixtureOfGaussians(K).fit(bad)),
            "other data": said(lambda: MixtureOfGaussians(K).fit(bad[: 5000 + rank])),
            "few": said(lambda: MixtureOfGaussians(1).fit(bad[:1])),
            "argument": said(lambda: MixtureOfGaussians(K + rank).fit(bad[:5000])),
            "adam": said(lambda: MixtureOfGaussians(K, method="adam").fit(halves)),
        }
        found["alone"] = learned(MixtureOfGaussians(K, distributed="none", random_state=rank).fit(data(folder, "tensor")[:100]))
        fitted(folder, *CASES["full"], checkpoint=folder / "two.pt", save_every=3)
    torch.save(found, folder / f"found-{size}-{rank}")
    leave()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    x = blobs(N, d=D)
    x[:, 2] *= 0.3
    np.save(folder / "x.npy", x.numpy())
    return folder


@pytest.fixture(scope="module")
def one(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_mixture_data, "_SAMPLE", 500)
        patch.setattr(_mixture_data, "_LEAST_ELEMENTS", 2**12)
        return {name: fitted(folder, *case) for name, case in CASES.items()} | {
            "partial_fit": partial(folder),
            "bayesian": bayesian(folder),
        }


@pytest.fixture(scope="module", params=[2, 3, 4])
def several(request, folder):
    size = request.param
    interpreters.spawn(work, (size, folder, free_port()), size)
    return [torch.load(folder / f"found-{size}-{rank}", weights_only=False) for rank in range(size)]


def assert_same(got, want, tolerance):
    assert (got["n_iter"], got["converged"]) == (want["n_iter"], want["converged"])
    for name in ("weights_", "means_", "covariances_", "bounds"):
        np.testing.assert_allclose(got[name], want[name], rtol=tolerance, atol=tolerance, err_msg=name)


def test_any_number_of_processes_gives_the_fit_of_one(one, several):
    """Rounding apart: 1e-6 is asked for, float64 gives 1e-9. All processes have the same bits."""
    for name in one:
        for found in several:
            assert_same(found[name], one[name], 1e-6 if name == "float32" else 1e-9)
        for other in several[1:]:
            for key, value in several[0][name].items():
                np.testing.assert_array_equal(other[name][key], value, err_msg=f"{name}, {key}")


@pytest.fixture(scope="module")
def two(folder, one):
    if not (folder / "found-2-1").exists():
        interpreters.spawn(work, (2, folder, free_port()), 2)
    return [torch.load(folder / f"found-2-{rank}", weights_only=False) for rank in range(2)]


def test_batches_of_each_process_are_its_share(folder, two):
    start = {"means_init": data(folder, "tensor")[:K].numpy(), "covariance_type": "diag"}
    whole = learned(MixtureOfGaussians(K, **start, max_iter=8, tol=0.0, random_state=0).fit(data(folder, "tensor")))
    for found in two:
        assert_same(found["batches"], whole, 1e-9)
    assert [found["calls"] for found in two] == [8, 0]  # the main process alone


def test_mistakes_end_every_process(two):
    for words, name in (
        (("X[5999, 1] is nan",), "nan"),
        (("samples is 5000 on rank 0 and 5001 on rank 1",), "other data"),
        (("X has 1 samples: expected at least one for each of 2 processes",), "few"),
        (("n_components is 4 on rank 0 and 5 on rank 1",), "argument"),
        (("X comes in batches, method='adam'", "expected an array, a tensor or a file"), "adam"),
    ):
        for found in two:
            assert all(word in found["errors"][name] for word in words), found["errors"]


def test_a_fit_of_one_process_alone_asks_no_other(two):
    assert not np.array_equal(two[0]["alone"]["means_"], two[1]["alone"]["means_"])


# --- checkpoints ------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys, warnings
import numpy as np
from vae_fast.models import MixtureOfGaussians
warnings.simplefilter("ignore")
folder, method, size, die = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
calls = []
def callback(mixture, iteration, bound):
    calls.append(1)
    if len(calls) == die:
        os.kill(os.getpid(), signal.SIGKILL)
options = dict(n_init=2, max_iter=12, tol=0.0, random_state=1, method=method, covariance_type="full")
options["batch_size"] = int(size) or None
path = folder + f"/{method}-{size}-{'whole' if die == 0 else 'killed'}.pt"
mixture = MixtureOfGaussians(4, **options)
x = np.load(folder + "/x.npy", mmap_mode="r")[:1200]
mixture.fit(x, callback=callback, checkpoint=path, save_every=2, resume=die > 0 and os.path.exists(path))
np.savez(path + ".npz", iterations=[row[:3] for row in mixture.fit_history_], best=mixture.lower_bounds_,
         **{name: getattr(mixture, name) for name in ("weights_", "means_", "covariances_")})
"""


@pytest.mark.parametrize(("method", "size"), [("em", 0), ("adam", 300)])
def test_a_fit_killed_nine_times_ends_where_the_unbroken_one_does(folder, method, size):
    """24 iterations in two starts; each attempt dies in its third, two after the last checkpoint at most."""

    def run(die):
        return interpreters.run("-c", KILLED, folder, method, size, die, environment=environment(), timeout=120)

    done = run(0)
    assert done.returncode == 0, done.stderr
    for _ in range(9):
        assert run(3).returncode == -signal.SIGKILL
    done = run(99)
    assert done.returncode == 0, done.stderr
    whole, killed = (dict(np.load(folder / f"{method}-{size}-{name}.pt.npz")) for name in ("whole", "killed"))
    for name, value in whole.items():
        np.testing.assert_array_equal(killed[name], value, err_msg=name)
    assert len(whole["iterations"]) == 24


def test_one_process_takes_up_what_two_have_written(folder, two, one, monkeypatch):
    monkeypatch.setattr(_mixture_data, "_SAMPLE", 500)
    assert_same(fitted(folder, *CASES["full"], checkpoint=folder / "two.pt", resume=True), one["full"], 1e-9)


def test_more_iterations_go_on_from_the_checkpoint(tmp_path):
    x = blobs(400)
    options = {"covariance_type": "diag", "random_state": 0, "tol": 0.0}
    whole = learned(MixtureOfGaussians(3, **options, max_iter=9).fit(x))
    seen = []

    class Stop(Exception):
        pass

    def stop(mixture, iteration, bound):
        if iteration == 5:
            raise Stop

    with pytest.raises(Stop):
        MixtureOfGaussians(3, **options, max_iter=6).fit(x, checkpoint=tmp_path / "a.pt", save_every=2, callback=stop)
    again = MixtureOfGaussians(3, **options, max_iter=9)
    again.fit(x, checkpoint=tmp_path / "a.pt", resume=True, callback=lambda _, iteration, bound: seen.append(iteration))
    assert seen == [5, 6, 7, 8, 9]
    assert_same(learned(again), whole, 0.0)


def test_checkpoints_that_cannot_be_taken_up(tmp_path):
    x, path = blobs(200), tmp_path / "a.pt"

    def fit(x=x, k=2, **options):
        return MixtureOfGaussians(k, random_state=0, max_iter=2, tol=0.0, **options).fit(x, checkpoint=path, resume=True)

    with pytest.raises(FileError, match=r"a\.pt: cannot be read"):
        fit()
    with pytest.raises(ValueError, match="resume=True, checkpoint=None"):
        MixtureOfGaussians(2).fit(x, resume=True)
    with pytest.raises(ValueError, match="save_every=0"):
        MixtureOfGaussians(2).fit(x, save_every=0)
    MixtureOfGaussians(2, random_state=0, max_iter=2, tol=0.0).fit(x, checkpoint=path)
    fit()
    for words, act in (
        ("was fitted with n_components=2, this run has n_components=3", lambda: fit(k=3)),
        ("was fitted with covariance_type='full', this run has covariance_type='diag'", lambda: fit(covariance_type="diag")),
        ("was fitted to other data", lambda: fit(x + 1.0)),
        ("was fitted with samples=200, this run has samples=199", lambda: fit(x[:199])),
    ):
        with pytest.raises(FileError, match=words):
            act()
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:500] + bytes([whole[500] ^ 1]) + whole[501:], b"", b"PK"):
        path.write_bytes(damaged)
        with pytest.raises(FileError, match=r"a\.pt: "):
            fit()


# --- the command ------------------------------------------------------------------------------------------------------


def mog(folder, out, *options):
    shared = ["--covariance", "diag", "--dtype", "float64", "--max-iter", 8, "--tol", 0, "--no-pictures", "--threads", 1]
    return [str(o) for o in ("mog", "--data", folder / "x.npy", "-k", K, "--out", out, *shared, *options)]


def in_processes(size, *command):
    return started_directly("-m", "vae_fast", *command, processes=size)


def numbers(out):
    with np.load(out / "mixture.npz") as file:
        arrays = {name: file[name] for name in ("weights", "means", "covariances")}
    results = json.loads((out / "results.json").read_text())
    return arrays | {name: results[name] for name in ("train_log_likelihood", "test_log_likelihood", "bic", "aic")}


def test_the_command_in_two_processes(folder, tmp_path):
    assert cli.main(mog(folder, tmp_path / "one", "--holdout", 0.1)) == 0
    (out, err, code), (out1, err1, code1) = in_processes(2, *mog(folder, tmp_path / "two", "--holdout", 0.1))
    assert (code, code1) == (0, 0), err + err1
    assert "; 2 processes" in out and out.count("wrote") == 1 and out1 == ""
    a, b = numbers(tmp_path / "one"), numbers(tmp_path / "two")
    for name, value in a.items():
        np.testing.assert_allclose(b[name], value, rtol=1e-9, err_msg=name)
    assert {p.name for p in (tmp_path / "two").iterdir()} == {
        *(".vae_fast-run", "mixture.npz", "config.json", "metrics.csv", "results.json")
    }


RESTARTED = """
import os, signal, sys
from vae_fast import cli
from vae_fast.models import _em
once, calls = _em.finite_bound, []
def bound(*args):
    calls.append(1)
    if len(calls) == 6 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return once(*args)
_em.finite_bound = bound
sys.exit(cli.main(sys.argv[1:]))
"""


def test_torchrun_restarts_a_killed_process_from_the_checkpoint(folder, tmp_path):
    (tmp_path / "killed.py").write_text(RESTARTED)
    run = ["-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", free_port(), "--max-restarts", 1]
    command = [*run, tmp_path / "killed.py", *mog(folder, tmp_path / "two", "--save-every", 2)]
    done = interpreters.run(*command, environment=environment(), timeout=120)
    assert done.returncode == 0, done.stderr
    assert (done.stdout.count("iteration    4"), done.stdout.count("iteration    5")) == (1, 2)  # the last checkpoint is the fourth's
    assert cli.main(mog(folder, tmp_path / "one")) == 0
    with np.load(tmp_path / "one" / "mixture.npz") as one, np.load(tmp_path / "two" / "mixture.npz") as two:
        np.testing.assert_allclose(two["means"], one["means"], rtol=1e-9)


def test_more_processes_than_rows_is_an_error_of_one_line(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 2)))
    command = ["mog", "--data", str(tmp_path / "x.npy"), "-k", "1", "--out", str(tmp_path / "run"), "--no-pictures"]
    for _, err, code in in_processes(2, *command):
        assert code == 2 and err.count("\n") == 1, err
        assert "x.npy has 1 training points: expected one for each of 2 processes" in err
    assert not (tmp_path / "run").exists()


def test_the_command_goes_on_where_it_was_killed(folder, tmp_path, capsys, monkeypatch):
    run = mog(folder, tmp_path / "run", "--save-every", 2)
    one_line(capsys, cli.main([*run, "--resume"]), "holds no fit that was cut short", "leave out --resume")
    one_line(capsys, cli.main([*run, "--resume", "--overwrite"]), "--resume: goes without --overwrite")
    assert cli.main(mog(folder, tmp_path / "whole")) == 0
    say = cli.training.say

    def stop(line):
        say(line)
        if "iteration    5" in line:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli.training, "say", stop)
    assert cli.main(run) == 130
    monkeypatch.undo()
    capsys.readouterr()
    one_line(capsys, cli.main([*run, "--resume", "-k", "5"]), "fit.pt", "was fitted with n_components=4, this run has n_components=5")
    kept = (tmp_path / "run" / "fit.pt").read_bytes()
    (tmp_path / "run" / "fit.pt").write_bytes(kept[:-100])
    one_line(capsys, cli.main([*run, "--resume"]), "fit.pt", "not a checkpoint, broken or truncated")
    (tmp_path / "run" / "fit.pt").write_bytes(kept)
    assert cli.main([*run, "--resume"]) == 0
    for name in ("mixture.npz", "metrics.csv"):
        assert (tmp_path / "run" / name).exists()
    with np.load(tmp_path / "run" / "mixture.npz") as got, np.load(tmp_path / "whole" / "mixture.npz") as want:
        np.testing.assert_array_equal(got["means"], want["means"])
    rows, whole = ((tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("run", "whole"))
    assert [row.rsplit(",", 1)[0] for row in rows] == [row.rsplit(",", 1)[0] for row in whole]
    assert len(rows) == 9

"""The command `vae-fast mog`: its files, its lines, its pictures, and one-line errors."""

import csv
import functools
import io
import itertools
import json
import math
import re
import sys

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from one_line_errors import one_line

from vae_fast import cli, models
from vae_fast.cli import _points
from vae_fast.data.toys import TOYS

FILES = {".vae_fast-run", "mixture.npz", "config.json", "metrics.csv", "results.json"}


def mog(out, *options):
    return cli.main(["mog", "--out", str(out), *map(str, options)])


def results(out):
    return json.loads((out / "results.json").read_text())


def metrics(out):
    with (out / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


@pytest.fixture
def npy(tmp_path):
    """A file of two clusters in three dimensions."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 3, generator=generator) + 6.0 * (torch.arange(300) % 3 == 0)[:, None]
    np.save(tmp_path / "points.npy", x.numpy())
    return tmp_path / "points.npy"


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "deep" / "eight"
    assert mog(out, "--data", "eight-gaussians", "-k", 8, "--points", 4000, "--n-init", 3, "--seed", 1) == 0
    return out


def test_files(eight):
    assert {p.name for p in eight.iterdir()} == FILES | {"log_likelihood.png", "density.png"}
    config = json.loads((eight / "config.json").read_text())
    assert (config["data"], config["components"], config["covariance"], config["seed"]) == ("eight-gaussians", 8, "full", 1)
    assert not {"out", "run", "overwrite"} & config.keys()


def test_the_mixture_is_the_one_that_was_drawn_from(eight):
    with np.load(eight / "mixture.npz", allow_pickle=False) as file:
        weights, means, covariances = file["weights"], file["means"], file["covariances"]
        assert str(file["covariance_type"]) == "full"
    angles = np.sort(np.arctan2(means[:, 1], means[:, 0]))
    np.testing.assert_allclose(weights, 1.0 / 8, atol=0.02)
    np.testing.assert_allclose(np.diff(angles), math.pi / 4, atol=0.03)
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), 3.0, atol=0.05)
    np.testing.assert_allclose(covariances, np.broadcast_to(0.09 * np.eye(2), (8, 2, 2)), atol=0.012)


def test_results(eight):
    found = results(eight)
    assert found["converged"] is True
    assert found["dead_components"] == 0
    assert found["starts"] == 3
    assert found["test_log_likelihood"] < found["true_test_log_likelihood"] < found["test_log_likelihood"] + 0.02
    parameters = 7 + 8 * 2 + 8 * 3
    assert found["bic"] == pytest.approx(-2 * 4000 * found["train_log_likelihood"] + parameters * math.log(4000), rel=1e-5)
    assert found["aic"] == pytest.approx(-2 * 4000 * found["train_log_likelihood"] + parameters * 2, rel=1e-5)


def test_metrics(eight):
    rows = metrics(eight)
    assert {int(row["start"]) for row in rows} == {1, 2, 3}
    for start in (1, 2, 3):
        mine = [row for row in rows if row["start"] == start]
        assert [row["iteration"] for row in mine] == list(range(1, len(mine) + 1))
        assert all(a["log_likelihood"] <= b["log_likelihood"] + 1e-5 for a, b in itertools.pairwise(mine))  # EM never falls
    assert all(a["seconds"] < b["seconds"] for a, b in itertools.pairwise(rows))
    last = max(row["log_likelihood"] for row in rows)
    assert last == pytest.approx(results(eight)["train_log_likelihood"], abs=2e-3)


def test_lines(tmp_path, capsys):
    assert mog(tmp_path, "--data", "cats", "-k", 2, "--points", 500, "--no-pictures", "--tol", 0, "--max-iter", 25) == 0
    out, err = capsys.readouterr()
    assert err == ""  # no warning, and no progress bar where stderr is no terminal
    assert "cats: 500 training and 500 test points of dimension 1" in out
    assert "mixture: K = 2, full covariances, by em; device cpu, float32" in out
    assert re.findall(r"^iteration +(\d+)  log-likelihood -1\.\d{4}$", out, re.M) == [*map(str, range(1, 11)), "20"]
    assert "not converged (see --max-iter and --tol) after 25 iterations" in out
    assert re.search(r"training -1\.\d{4}, test -1\.\d{4} \(the true density: -1\.\d{4}\)", out)
    assert re.search(r"BIC [\d,.]+  AIC [\d,.]+  dead components: 0", out)
    assert {p.name for p in tmp_path.iterdir()} == FILES


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_bar(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert mog(tmp_path, "--data", "cats", "-k", 2, "--points", 500, "--no-pictures", "--max-iter", 5, "--n-init", 2) == 0
    assert "looking for a start" in terminal.getvalue()
    assert re.search(r"log-likelihood -1\.\d+: .* 1/10 \[", terminal.getvalue())
    assert re.search(r"[\d,]+ rows/s", terminal.getvalue())


@pytest.mark.parametrize("covariance", ["diag", "spherical", "tied", "full"])
@pytest.mark.parametrize("method", ["em", "adam"])
def test_forms_and_methods(npy, tmp_path, covariance, method):
    """Every form by either method finds the two clusters; the file has scikit-learn's shapes; held-out rows are scored."""
    options = ["--covariance", covariance, "--method", method, "--holdout", 0.2, "--dtype", "float64", "--no-pictures"]
    assert mog(tmp_path / "run", "--data", npy, "-k", 2, "--max-iter", 60, *options) == 0
    with np.load(tmp_path / "run" / "mixture.npz") as file:
        arrays = dict(file)
    shape = {"diag": (2, 3), "spherical": (2,), "tied": (3, 3), "full": (2, 3, 3)}[covariance]
    assert arrays["covariances"].shape == shape
    assert arrays["means"].dtype == np.float64
    heavy = arrays["weights"].argmax()
    np.testing.assert_allclose(arrays["weights"][heavy], 2 / 3, atol=0.05)
    np.testing.assert_allclose(arrays["means"][[heavy, 1 - heavy]], [[0.0] * 3, [6.0] * 3], atol=0.5)
    found = results(tmp_path / "run")
    assert "true_test_log_likelihood" not in found
    assert found["test_log_likelihood"] == pytest.approx(found["train_log_likelihood"], abs=0.5)
    assert found["test_log_likelihood"] != found["train_log_likelihood"]


def test_held_out_rows_are_the_others(npy):
    x = torch.from_numpy(np.load(npy))
    read = functools.partial(_points.read, str(npy), torch.float32, data_dir=None, n=None)
    points = read(holdout=0.25, seed=3)
    assert (len(points.train), len(points.test)) == (225, 75)
    train, test = (_points.some(part, torch.float32) for part in (points.train, points.test))
    everything = torch.cat((train, test))
    assert torch.equal(everything[everything[:, 0].argsort()], x[x[:, 0].argsort()])
    assert not torch.equal(test, _points.some(read(holdout=0.25, seed=4).test, torch.float32))
    whole = read(holdout=0.0, seed=3).train
    assert isinstance(whole, np.memmap) and torch.equal(_points.some(whole, torch.float32), x)


def test_test_points_of_a_toy_are_others():
    points = _points.read("cats", torch.float64, data_dir=None, n=1000, holdout=0.0, seed=0)
    assert points.train.dtype == torch.float64
    assert not torch.isin(points.test, points.train).any()


def test_options_reach_the_model(npy, tmp_path, monkeypatch):
    given = {}
    true = models.MixtureOfGaussians

    def spy(components, **options):
        given.update(options, n_components=components)
        return true(components, **options)

    monkeypatch.setattr(models, "MixtureOfGaussians", spy)
    text = "-k 3 --covariance diag --method adam --max-iter 7 --tol 0.01 --reg-covar 1e-4 --lr 0.03 --batch-size 50 --n-init 2 --seed 9"
    assert mog(tmp_path / "run", "--data", npy, "--no-pictures", "--dtype", "float64", *text.split()) == 0
    want = {"n_components": 3, "covariance_type": "diag", "method": "adam", "max_iter": 7, "tol": 0.01, "reg_covar": 1e-4, "lr": 0.03}
    want |= {"batch_size": 50, "n_init": 2, "random_state": 9, "dtype": torch.float64, "device": torch.device("cpu"), "reseed_dead": False}
    assert given == want
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["lr"], config["batch_size"], config["method"]) == (0.03, 50, "adam")
    assert len(metrics(tmp_path / "run")) <= 14


def test_seed_decides_the_run(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert mog(tmp_path / name, "--data", "two-moons", "-k", 5, "--points", 300, "--seed", seed, "--no-pictures") == 0
    a, b, c = ([row["log_likelihood"] for row in metrics(tmp_path / name)] for name in "abc")
    assert a == b != c


def test_dead_components(tmp_path, capsys, monkeypatch):
    """Components nobody needs are counted, and no warning of the model stands beside the summary."""
    true = models.MixtureOfGaussians
    start = {"means_init": np.array([[0.0], [1e3]]), "weights_init": np.array([0.5, 0.5]), "precisions_init": np.ones((2, 1, 1))}
    monkeypatch.setattr(models, "MixtureOfGaussians", lambda k, **options: true(k, **options, **start))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(100, 1)))
    assert mog(tmp_path / "run", "--data", tmp_path / "x.npy", "-k", 2, "--no-pictures") == 0
    out, err = capsys.readouterr()
    assert "dead components: 1" in out
    assert err == ""
    assert results(tmp_path / "run")["dead_components"] == 1


def test_a_file_of_points_on_the_line(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(50) % 7)  # integers, and (n,) instead of (n, 1)
    assert mog(tmp_path / "run", "--data", tmp_path / "x.npy", "-k", 2) == 0
    assert {p.name for p in (tmp_path / "run").iterdir()} == FILES | {"log_likelihood.png", "density.png"}


def test_a_file_named_like_a_toy_is_not_the_toy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "cats.npy", np.random.default_rng(0).normal(size=(50, 1)))
    (tmp_path / "cats.npy").rename(tmp_path / "cats")
    assert mog("run", "--data", "./cats", "-k", 1, "--holdout", 0.2, "--no-pictures") == 0
    assert "true_test_log_likelihood" not in results(tmp_path / "run")


def test_images(tmp_path):
    assert mog(tmp_path, "--data", "digits", "-k", 12, "--covariance", "diag", "--reg-covar", 1e-3, "--max-iter", 5) == 0
    assert {p.name for p in tmp_path.iterdir()} == FILES | {"log_likelihood.png", "means.png", "samples.png"}
    for name in ("means.png", "samples.png"):
        assert imread(tmp_path / name)[..., :3].std() > 0.1


def test_other_points_have_the_curve_only(npy, tmp_path):
    assert mog(tmp_path / "run", "--data", npy, "-k", 2) == 0
    assert {p.name for p in (tmp_path / "run").iterdir()} == FILES | {"log_likelihood.png"}


def test_existing_run(npy, tmp_path, capsys):
    out = tmp_path / "run"
    assert mog(out, "--data", npy, "-k", 2, "--no-pictures") == 0
    before = (out / "mixture.npz").read_bytes()
    one_line(capsys, mog(out, "--data", npy, "-k", 3), out, "already holds a run", "--overwrite")
    # Nor does the other command write over it.
    one_line(capsys, cli.main(["train", "--out", str(out), "--epochs", "1"]), out, "already holds a run")
    assert (out / "mixture.npz").read_bytes() == before
    (out / "mine.txt").write_text("kept")
    assert mog(out, "--data", npy, "-k", 3, "--overwrite", "--no-pictures") == 0
    with np.load(out / "mixture.npz") as file:
        assert len(file["weights"]) == 3
    assert (out / "mine.txt").exists()


def test_default_directory(npy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["mog", "--data", str(npy), "-k", "2", "--no-pictures"]) == 0
    assert {p.name for p in (tmp_path / "runs" / "mog-points").iterdir()} == FILES


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-k", "0"], ["-k", "'0': expected an integer of at least 1"]),
        (["-k", "many"], ["'many'"]),
        ([], ["-k"]),
        (["-k", "2", "--tol", "-1"], ["--tol", "'-1'"]),
        (["-k", "2", "--reg-covar", "nan"], ["--reg-covar", "'nan'"]),
        (["-k", "2", "--lr", "0"], ["--lr", "above 0"]),
        (["-k", "2", "--lr", "0.1"], ["--lr: goes with --method adam only"]),
        (["-k", "2", "--batch-size", "10"], ["--batch-size: goes with --method adam only"]),
        (["-k", "2", "--method", "adam", "--reseed-dead"], ["--reseed-dead: goes with --method em only"]),
        (["-k", "2", "--covariance", "round"], ["'round'", "spherical"]),
        (["-k", "2", "--method", "sgd"], ["'sgd'"]),
        (["-k", "2", "--dtype", "float16"], ["'float16'"]),
        (["-k", "2", "--holdout", "1"], ["--holdout 1", "below 1"]),
        (["-k", "2", "--holdout", "0.1"], ["--holdout: goes with FILE.npy only"]),
        (["-k", "2", "--device", "banana"], ["--device banana"]),
        (["-k", "50", "--points", "20"], ["-k 50", "only 20 training points"]),
    ],
)
def test_bad_options(tmp_path, capsys, options, words):
    one_line(capsys, mog(tmp_path / "run", "--data", "two-moons", *options), *words)
    assert not (tmp_path / "run").exists()


def test_points_of_what_is_no_toy(npy, tmp_path, capsys):
    one_line(capsys, mog(tmp_path / "run", "--data", npy, "-k", 2, "--points", 100), "--points: goes with a toy only")


def test_unknown_toy(tmp_path, capsys):
    one_line(capsys, mog(tmp_path / "run", "--data", "moons", "-k", 2), "--data moons", "digits", *TOYS)


def test_missing_images(tmp_path, capsys):
    one_line(capsys, mog(tmp_path / "run", "--data", "frey", "--data-dir", tmp_path, "-k", 2), tmp_path, "frey_faces.npy")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["no such file"]),
        (b"", ["not a .npy file"]),
        (b"1,2\n3,4\n", ["not a .npy file"]),
        (b"\x93NUMPY\x01\x00", ["broken or truncated"]),
        (np.array([Bomb()], dtype=object), ["pickled", "not loaded"]),
        (np.zeros((2, 3, 4)), ["shape (2, 3, 4)", "expected (n, d)"]),
        (np.float64(3.0), ["shape ()"]),
        (np.zeros((0, 2)), ["shape (0, 2)"]),
        (np.zeros((5, 2), dtype=complex), ["complex128", "real numbers"]),
        (np.array(["a", "b"]), ["<U1", "real numbers"]),
        (np.array([[0.0, 1.0], [math.nan, 0.0], [2.0, -math.inf]]), ["2 of 3 rows hold NaN or infinity", "row 1"]),
        (np.array([[0.0], [1e200]]), ["row 1 is too large for float32", "--dtype float64"]),
        (np.zeros((2, 2)), ["-k 3", "only 2 training points"]),
    ],
)
def test_bad_files(tmp_path, capsys, content, words):
    path = tmp_path / "x.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    one_line(capsys, mog(tmp_path / "run", "--data", path, "-k", 3), "x.npy", *words)
    assert not (tmp_path / "run").exists()


def test_a_raw_pickle_is_not_loaded(tmp_path, capsys):
    np.array([Bomb()], dtype=object).dump(tmp_path / "x.npy")
    one_line(capsys, mog(tmp_path / "run", "--data", tmp_path / "x.npy", "-k", 1), "not a .npy file")


def test_a_directory(tmp_path, capsys):
    one_line(capsys, mog(tmp_path / "run", "--data", tmp_path, "-k", 1), tmp_path, "is a directory")


def test_a_fit_that_cannot_be_made(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.ones((20, 2)))
    code = mog(tmp_path / "run", "--data", tmp_path / "x.npy", "-k", 2, "--reg-covar", 0, "--no-pictures")
    one_line(capsys, code, "singular", "reg_covar")
    assert not (tmp_path / "run" / "mixture.npz").exists()


def test_interrupt(tmp_path, capsys, monkeypatch):
    """Ctrl-C ends with 130, and the iterations until then are there."""
    say = cli.training.say

    def stop(line):
        say(line)
        if "iteration    3" in line:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli.training, "say", stop)
    assert mog(tmp_path, "--data", "spiral", "-k", 10, "--points", 500, "--no-pictures") == 130
    assert "interrupted" in capsys.readouterr().err
    assert len(metrics(tmp_path)) == 3
    monkeypatch.undo()
    assert mog(tmp_path, "--data", "spiral", "-k", 10, "--points", 500, "--no-pictures") == 0  # nothing was finished: nothing to protect


def test_matplotlib_is_asked_for_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    one_line(capsys, mog(tmp_path / "run", "--data", "cats", "-k", 2), "matplotlib", "vae_fast[train]", "--no-pictures")
    assert not (tmp_path / "run").exists()
    assert mog(tmp_path / "run", "--data", "cats", "-k", 2, "--points", 100, "--no-pictures") == 0


def test_help_says_it_all(capsys):
    assert cli.main(["mog", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("-\n", "-").split()).replace("- ", "-")
    for word in (
        *TOYS,
        "digits",
        "mnist",
        "frey",
        "FILE.npy",
        "--covariance",
        "--reg-covar",
        "--no-pictures",
        "--resume",
        "--save-every",
        "torchrun --nproc-per-node",
        "mixture.npz",
        "nats",
        "130",
    ):
        assert word in text
    for default in ("full", "em", "100", "0.001", "1e-06", "float32", "10000"):
        assert f"(default: {default})" in text


# --- the variational mixture ------------------------------------------------------------------------------------------


def test_bayesian(npy, tmp_path, capsys):
    """It uses two of six components for two clusters."""
    options = ("--data", npy, "-k", 6, "--bayesian", "--concentration", 1e-3, "--max-iter", 300, "--holdout", 0.1)
    assert mog(tmp_path / "out", *options) == 0
    found, rows = results(tmp_path / "out"), metrics(tmp_path / "out")
    assert found["converged"] and "bic" not in found
    assert list(rows[0]) == ["start", "iteration", "lower_bound", "seconds"]
    assert rows[-1]["lower_bound"] == pytest.approx(found["lower_bound"])
    mixture = np.load(tmp_path / "out" / "mixture.npz")
    assert (mixture["weights"] > 0.02).sum() == 2
    assert "lower bound" in capsys.readouterr().out
    assert (tmp_path / "out" / "log_likelihood.png").exists()
    assert not (tmp_path / "out" / "fit.pt").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--bayesian", "--method", "adam"), ("--method adam: goes without --bayesian",)),
        (("--bayesian", "--reseed-dead"), ("--reseed-dead: goes without --bayesian",)),
        (("--concentration", "0.1"), ("--concentration: goes with --bayesian only",)),
        (("--bayesian", "--concentration", "0"), ("--concentration", "0")),
    ],
)
def test_what_goes_with_bayesian(options, words, npy, tmp_path, capsys):
    one_line(capsys, mog(tmp_path / "out", "--data", npy, "-k", 2, *options), *words)

"""Two processes on the CPU against one: gradients, checkpoints, lost processes, and what they say."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from training_runs import images, small, untimed

from vae_fast import checkpoint, cli, data, training
from vae_fast._errors import FileError
from vae_fast.distributed import Terminated, World

ROOT = Path(__file__).resolve().parent.parent


class Plain(nn.Module):
    """Draws nothing, float64: one number to compare, whoever computes it. It writes down the rows it sees."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 5)).double()
        for p in self.parameters():
            p.data.normal_(generator=generator)
        self.seen = []

    def losses(self, x):
        self.seen.append(x[:, 0].tolist())
        error = (self.net(x) - x).square().sum(1).mean()
        return error.to(torch.float64), error.detach()

    def loss(self, x):
        return self.losses(x)[0]


def numbers(n):
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x[:, 0] = torch.arange(n)
    return x


#: name: rows, options. Batches of 8: 32 divides, 29 leaves a last batch of 5, 25 one of a single row, which one rank does not get.
CASES = {
    "even": (32, {}),
    "uneven": (29, {"drop_last": False}),
    "a rank without a row": (25, {"drop_last": False}),
    "accumulated": (29, {"drop_last": False, "accumulate": 3}),
    "sharded": (25, {"drop_last": False, "shard": True}),
    "sharded, accumulated": (29, {"drop_last": False, "accumulate": 3, "shard": True}),
    "bf16": (29, {"drop_last": False, "accumulate": 2, "amp": torch.bfloat16}),
    "bf16, sharded": (29, {"drop_last": False, "accumulate": 2, "amp": torch.bfloat16, "shard": True}),
}


def plain_run(n, epochs=2, model=None, **options):
    model = Plain() if model is None else model
    options = {"batch_size": 8, "epochs": epochs, "valid": numbers(11), "progress": False} | options
    history = training.fit(model, numbers(n), **options)
    weights = checkpoint.whole(dict(model.state_dict()))
    gradients = checkpoint.whole({name: p.grad for name, p in model.named_parameters()})
    return {"history": untimed(history), "weights": weights, "gradients": gradients, "seen": model.seen}


def noisy_run(path, **options):
    torch.manual_seed(5)
    model = small()
    options = {"batch_size": 50, "progress": False, "drop_last": False, "checkpoint": path} | options
    history = training.fit(model, images(), **options)
    return untimed(history), {k: v.clone() for k, v in checkpoint.whole(dict(model.state_dict())).items()}


def command(folder):
    """A run of the command, 3 epochs of 4 steps."""
    options = ["train", "--data", folder / "x.npy", "--out", folder / "run", "--epochs", 3, "--batch-size", 51, "--no-pictures"]
    return [str(o) for o in (*options, "--checkpoint-every", 3, "--hidden", 8, "--latent", 2, "--threads", 1)]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(**more):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TORCHELASTIC")}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return kept | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"} | more


def enter(rank, port):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def message(act):
    start = time.perf_counter()
    try:
        act()
    except Exception as error:
        return type(error).__name__, str(error), time.perf_counter() - start
    return None


# --- what both processes do, once for all tests below ---------------------------------------------------------------------


def work(rank, folder, port):
    enter(rank, port)
    torch.distributed.init_process_group("gloo")
    results = {name: plain_run(n, **options) for name, (n, options) in CASES.items()}
    for shard in (False, True):  # two epochs here, then what one process has begun
        name = "sharded" if shard else "whole"
        plain_run(29, drop_last=False, checkpoint=folder / f"two-{name}.pt", shard=shard)
        results[f"from one, {name}"] = plain_run(
            29, epochs=4, drop_last=False, checkpoint=folder / f"one-{name}.pt", resume=True, shard=shard
        )
    results["noise"] = noisy_run(folder / "a.pt", epochs=3, checkpoint_every=2)
    results["initial seed"] = torch.initial_seed()
    results["again"] = noisy_run(folder / "b.pt", epochs=2)
    results["resumed"] = noisy_run(folder / "b.pt", epochs=3, resume=True)
    # SIGTERM to one of them
    calls = []

    def terminate(x):
        calls.append(1)
        if len(calls) == 7 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return x

    with contextlib.suppress(Terminated):
        noisy_run(folder / "term.pt", epochs=3, transform=terminate)
        results["terminated"] = "no"
    results["calls"] = len(calls)
    results["after SIGTERM"] = noisy_run(folder / "term.pt", epochs=3, resume=True)
    results["command"] = cli.main(command(folder))
    # what does not fit
    other = {"model": nn.Sequential(nn.Linear(3, 3)), "broken": folder / "broken.pt"}
    other["model"].loss = lambda x: other["model"](x).sum()
    (folder / "broken.pt").write_bytes(b"PK\3\4")
    fit = {"epochs": 1, "batch_size": 8, "progress": False}
    results["errors"] = {
        "batch sizes": message(lambda: training.fit(Plain(), numbers(32), **fit | {"batch_size": 8 - 4 * rank})),
        "data": message(lambda: training.fit(Plain(), numbers(32 + rank), **fit)),
        "models": message(lambda: training.fit(other["model"] if rank else Plain(), numbers(32), **fit)),
        "argument on one": message(lambda: training.fit(Plain(), numbers(32), **fit | {"accumulate": rank})),
        "rows": message(lambda: training.fit(Plain(), numbers(32), **fit | {"accumulate": 5})),
        "broken": message(lambda: training.fit(Plain(), numbers(32), **fit, checkpoint=other["broken"], resume=True)),
        "other weights": message(lambda: training.fit(Plain(), numbers(32), **fit, checkpoint=folder / "a.pt", resume=True)),
        "full disk": message(lambda: training.fit(Plain(), numbers(32), **fit, checkpoint=folder / "a.pt" / "below.pt")),
        "sharded late": message(lambda: training.fit(Plain(), numbers(32), **fit, shard=True, optimizer=torch.optim.SGD([torch.ones(1)]))),
    }
    torch.save(results, folder / f"results-{rank}")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Both processes' results, and the folder of their files."""
    folder = tmp_path_factory.mktemp("pair")
    for name in ("whole", "sharded"):
        plain_run(29, drop_last=False, checkpoint=folder / f"one-{name}.pt")
    np.save(folder / "x.npy", images(230, 16).numpy())
    mp.spawn(work, (folder, free_port()), nprocs=2)
    return [torch.load(folder / f"results-{rank}") for rank in range(2)], folder


def assert_close(got, want, rtol):
    for a, b in zip(got["history"], want["history"], strict=True):
        assert a == pytest.approx(b, rel=rtol)
    for part in ("gradients", "weights"):
        scale = max(float(t.abs().max()) for t in want[part].values())
        for name, t in want[part].items():
            torch.testing.assert_close(got[part][name], t, rtol=rtol, atol=rtol * scale)


# --- one gradient -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one_large_batch(pair, name):
    n, options = CASES[name]
    want = plain_run(n, **{k: v for k, v in options.items() if k not in ("shard", "accumulate")})
    for results in pair[0]:
        assert_close(results[name], want, 1e-6 if "bf16" not in name else 3e-2)


def test_each_row_is_seen_once_an_epoch_in_the_order_of_one_process(pair):
    ranks, _ = pair
    batches = [[a + b for a, b in zip(*(r[name]["seen"] for r in ranks), strict=True)] for name in ("even", "uneven")]
    for got, n in zip(batches, (32, 29), strict=True):
        want = plain_run(n, drop_last=n == 32)["seen"]
        assert got == want
    # The rank without a row takes part with one that does not count.
    assert [r["a rank without a row"]["seen"][3] for r in ranks] == 2 * [ranks[0]["a rank without a row"]["seen"][3]]


@pytest.mark.parametrize("accumulate", [2, 3, 8])
def test_accumulation_in_one_process(accumulate):
    assert_close(plain_run(29, drop_last=False, accumulate=accumulate), plain_run(29, drop_last=False), 1e-9)


def test_noise_is_each_rank_s_own_and_reproducible(pair):
    (a, b), _ = pair
    assert a["initial seed"] != b["initial seed"]
    assert a["noise"][0] == b["noise"][0]  # one loss, whoever says it
    assert a["noise"][0][:2] == a["again"][0]


# --- checkpoints ------------------------------------------------------------------------------------------------------


def same_bits(a, b):
    return a[0] == b[0] and all(torch.equal(a[1][k], b[1][k]) for k in b[1])


def test_resumed_by_as_many_processes_to_the_same_bits(pair):
    for results in pair[0]:
        assert same_bits(results["resumed"], results["noise"])


def test_sigterm_to_one_process_stops_all_at_the_same_step(pair, capfd):
    for results in pair[0]:
        assert "terminated" not in results
        assert results["calls"] == 7
        assert same_bits(results["after SIGTERM"], results["noise"])


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_resumed_by_another_number_of_processes(pair, tmp_path, capsys, kind):
    ranks, folder = pair
    unbroken = plain_run(29, epochs=4, drop_last=False)
    for results in ranks:  # one, then two
        assert_close(results[f"from one, {kind}"], unbroken, 1e-6)
    path = folder / f"two-{kind}.pt"
    before = path.read_bytes()
    got = plain_run(29, epochs=4, drop_last=False, checkpoint=path, resume=True)
    path.write_bytes(before)
    assert_close(got, unbroken, 1e-6)
    assert len(got["seen"]) == 2 * (4 + 1)  # two epochs of four batches, and their validation
    assert [rows for rows in got["seen"] if len(rows) != 11] == [rows for rows in unbroken["seen"] if len(rows) != 11][8:]
    assert re.search(r"written by 2 process\(es\), this run has 1.*continuing after 2 epochs", capsys.readouterr().err)


def test_only_rank_0_writes(pair):
    _, folder = pair
    names = {p.name for p in folder.iterdir()}
    assert not any(name.endswith(".tmp") for name in names)
    assert {"a.pt", "a.previous.pt", "b.pt"} <= names
    state = checkpoint.load(folder / "a.pt")
    assert checkpoint.world_size_of(state) == 2
    assert not torch.equal(state["rng"]["cpu"], state["rng"]["ranks"][1]["cpu"])


def test_checkpoint_inside_an_epoch_resumes_to_the_same_bits(tmp_path, capsys):
    want = noisy_run(tmp_path / "a.pt", epochs=2)
    calls = []

    def dies(x):
        calls.append(1)
        if len(calls) == 9:  # the fourth step of the second epoch of five
            raise KeyboardInterrupt
        return x

    with pytest.raises(KeyboardInterrupt):
        noisy_run(tmp_path / "b.pt", epochs=2, transform=dies, checkpoint_every=2)
    state = checkpoint.load(tmp_path / "b.pt")
    assert (state["epoch"], state["partial"]["step"]) == (1, 3)
    assert same_bits(noisy_run(tmp_path / "b.pt", epochs=2, resume=True), want)
    assert "continuing after 1 epochs and 3 steps" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_broken_newest_checkpoint_gives_way_to_the_one_before(tmp_path, capsys, damage):
    path = tmp_path / "a.pt"
    want = noisy_run(path, epochs=3, keep_previous=True)
    assert [checkpoint.load(p)["epoch"] for p in (path, checkpoint.previous_of(path))] == [3, 2]
    path.write_bytes(path.read_bytes()[:999])
    if damage == "gone":
        path.unlink()
    assert same_bits(noisy_run(path, epochs=3, resume=True), want)
    assert re.search(r"a.pt: .*fell back on a.previous.pt; continuing after 2 epochs", capsys.readouterr().err)
    path.write_bytes(b"")
    checkpoint.previous_of(path).write_bytes(b"")
    with pytest.raises(FileError, match=r"a.pt: not a checkpoint, broken or truncated"):
        noisy_run(path, epochs=3, resume=True)


def test_full_disk_leaves_the_last_two(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    noisy_run(path, epochs=2, keep_previous=True)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="No space left on device"):
        noisy_run(path, epochs=3, keep_previous=True, resume=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_sigterm_in_one_process(tmp_path, capsys):
    want = noisy_run(tmp_path / "a.pt", epochs=2)
    calls = []

    def terminate(x):
        calls.append(1)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return x

    with pytest.raises(Terminated) as stop:
        noisy_run(tmp_path / "b.pt", epochs=2, transform=terminate)
    assert (stop.value.code, len(calls)) == (143, 7)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert "SIGTERM: " in capsys.readouterr().err
    assert same_bits(noisy_run(tmp_path / "b.pt", epochs=2, resume=True), want)


# --- what does not fit, who does not come -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("batch sizes", "batch_size is 8 on rank 0 and 4 on rank 1"),
        ("data", "n is 32 on rank 0 and 33 on rank 1"),
        ("models", "model is .* on rank 0 and .* on rank 1"),
        ("argument on one", "accumulate=0"),
        ("rows", r"batch_size=8: expected a row for each of 2 process\(es\) and accumulate=5 pieces"),
        ("broken", "broken.pt: not a checkpoint, broken or truncated"),
        ("other weights", "was trained with batch_size=50"),
        ("full disk", "below.pt: cannot be written"),
        ("sharded late", "expected optimizer=None"),
    ],
)
def test_one_clear_error_in_every_process(pair, name, words):
    for results in pair[0]:
        _, said, seconds = results["errors"][name]
        assert re.search(words, said)
        assert "\n" not in said
        assert seconds < 5


def lose(rank, folder, port):
    """Rank 1 is silent for longer than the time-out, then gone."""
    enter(rank, port)
    model, steps = Plain(), []

    def late(x):
        steps.append(1)
        if rank == 1 and len(steps) == 3:
            time.sleep(4)
            os._exit(0)
        return x

    if rank == 0:
        fit = {"epochs": 2, "batch_size": 8, "progress": False, "timeout": 2.0}
        torch.save(message(lambda: training.fit(model, numbers(32), transform=late, **fit)), folder / "said")
        os._exit(0)
    training.fit(model, numbers(32), transform=late, epochs=2, batch_size=8, progress=False, timeout=2.0)


def test_process_that_does_not_answer_is_given_up(tmp_path):
    mp.spawn(lose, (tmp_path, free_port()), nprocs=2)
    kind, said, seconds = torch.load(tmp_path / "said")
    assert kind == "RunError"
    assert "another process of the run was lost or did not answer within 2 s" in said
    assert seconds < 12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"accumulate": 0}, "accumulate=0"),
        ({"distributed": "yes"}, "distributed='yes'"),
        ({"timeout": 0.0}, "timeout=0.0"),
        ({"shard": True}, "shard=True: expected a process group"),
        ({"checkpoint_every": 3}, "checkpoint_every=3: expected a checkpoint"),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        plain_run(32, **options)


def test_world_of_one():
    world = World()
    assert world.gather(3) == [3]
    assert world.on_main(lambda: 4) == world.together(lambda: 4) == 4
    state = torch.get_rng_state()
    world.reseed()
    assert torch.equal(torch.get_rng_state(), state)


# --- the command under torchrun ---------------------------------------------------------------------------------------


def torchrun(*command, restarts=0, **more):
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    run += ["--max-restarts", str(restarts), *map(str, command)]
    return subprocess.run(run, capture_output=True, text=True, check=False, env=environment(**more), timeout=120)


KILLED = """
import os, signal, sys
from vae_fast import cli, data
once, calls = data.in_model_dtype, []  # called for the two held-out parts, then for 4 batches and the validation an epoch
def batch(x):
    calls.append(1)
    if len(calls) == 14 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return once(x)
data.in_model_dtype = batch
sys.exit(cli.main(sys.argv[1:]))
"""


def test_killed_process_restarts_from_the_last_checkpoint(pair, tmp_path):
    np.save(tmp_path / "x.npy", images(230, 16).numpy())
    (tmp_path / "killed.py").write_text(KILLED)
    done = torchrun(tmp_path / "killed.py", *command(tmp_path), restarts=1)
    assert done.returncode == 0, done.stderr
    assert "restart 1: what was done after the checkpoint is done again; continuing after 2 epochs and 1 steps" in done.stderr
    assert done.stdout.count("epoch 3/3") == 1  # rank 0 alone prints
    assert done.stdout.count("epoch 1/3") == 1
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        *("checkpoint.pt", "checkpoint.previous.pt", "config.json", "metrics.csv", "results.json")
    }
    restarted, unbroken = (checkpoint.load(folder / "run" / "checkpoint.pt") for folder in (tmp_path, pair[1]))
    assert untimed(restarted["history"]) == untimed(unbroken["history"])
    assert all(torch.equal(t, unbroken["model"][name]) for name, t in restarted["model"].items())


BREAKING = """
import os, resource, sys
from vae_fast import checkpoint, cli
once, calls, attempt = checkpoint.write, [], os.environ["TORCHELASTIC_RESTART_COUNT"]
def write(path, state, **how):
    calls.append(1)
    if len(calls) == 4 and attempt == "0":
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # as a full disk: no file may grow beyond 4 kB
    once(path, state, **how)
    if len(calls) == 3 and attempt == "1":
        path.write_bytes(path.read_bytes()[:2000])
        os.kill(os.getpid(), 9)
checkpoint.write = write
sys.exit(cli.main(sys.argv[1:]))
"""


def test_full_disk_and_a_broken_checkpoint_between_restarts(pair, tmp_path):
    np.save(tmp_path / "x.npy", images(230, 16).numpy())
    (tmp_path / "breaking.py").write_text(BREAKING)
    done = torchrun(tmp_path / "breaking.py", *command(tmp_path), restarts=2)
    assert done.returncode == 0, done.stderr
    path = re.escape(str(tmp_path / "run" / "checkpoint.pt"))
    for words in (
        f"error: {path}: cannot be written: File too large",
        f"error: rank 0: {path}: cannot be written",
        "restart 1: .*continuing after 1 epochs and 2 steps",
        f"{path}: not a checkpoint, broken or truncated: .* fell back on checkpoint.previous.pt; restart 2: .* after 2 epochs and 1 steps",
    ):
        assert re.search(words, done.stderr), done.stderr
    restarted, unbroken = (checkpoint.load(folder / "run" / "checkpoint.pt") for folder in (tmp_path, pair[1]))
    assert all(torch.equal(t, unbroken["model"][name]) for name, t in restarted["model"].items())


def test_restart_takes_up_its_own_job_alone(tmp_path, monkeypatch, capsys):
    command = ["train", "--out", str(tmp_path), "--epochs", "1", "--hidden", "8", "--no-pictures"]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    assert cli.main(command) == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert cli.main(command) == 0
    assert "all 1 epochs are done" in capsys.readouterr().out
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "second")
    assert cli.main(command) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_error_of_the_command_in_every_process(tmp_path):
    done = torchrun("-m", "vae_fast", "train", "--out", tmp_path / "run", "--resume", "--shard")
    assert done.returncode != 0
    assert len(re.findall("vae-fast: error: .*nothing to resume", done.stderr)) == 2
    assert not (tmp_path / "run").exists()


# --- data that do not fit ---------------------------------------------------------------------------------------------


def test_file_is_mapped_and_gathered_by_batches(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (100, 4, 6), dtype=np.uint8)
    np.save(tmp_path / "x.npy", values)
    images = data.load_file(tmp_path / "x.npy")
    assert images.image_shape == (4, 6)
    assert [len(x) for x in (images.train, images.valid, images.test)] == [90, 5, 5]
    assert images.train.dtype == torch.uint8
    assert np.array_equal(torch.cat([images.train, images.valid, images.test]).numpy(), values.reshape(100, 24))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r+")
    mapped[0, 0, 0] ^= 255  # seen through the mapping: nothing was copied
    assert images.train[0, 0] == values[0, 0, 0] ^ 255


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float64"])
def test_command_trains_on_a_file(tmp_path, capsys, dtype):
    values = np.random.default_rng(0).random((300, 4, 6))
    np.save(tmp_path / "x.npy", (values * (255 if dtype == "uint8" else 1)).astype(dtype))
    file, small = ["--data", str(tmp_path / "x.npy")], ["--hidden", "8", "--latent", "2", "--eval", "2"]
    run = ["train", "--out", str(tmp_path / "run")]
    assert cli.main([*run, *file, *small, "--binarize", "--epochs", "1"]) == 0
    assert cli.main([*run, *file, "--resume", "--epochs", "2"]) == 0  # still binarised
    assert cli.main([*run[:-1], str(tmp_path / "again"), *file, *small, "--binarize", "--epochs", "2", "--no-pictures"]) == 0
    first, again = (checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("run", "again"))
    assert untimed(first["history"]) == untimed(again["history"])
    assert first["config"]["binarize"] is True
    capsys.readouterr()
    for options, words in (([], "name it with --data"), ([*file, "--dataset", "digits"], "expected it alone")):
        assert cli.main([*run, *options, "--resume"]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 4), np.uint8), r"shape \(3, 4\)"),
        (np.zeros((30, 2, 2, 2), np.uint8), r"shape \(30, 2, 2, 2\)"),
        (np.zeros((30, 4), np.int64), "dtype int64"),
        (np.full((30, 4), 1.5), r"not in \[0, 1\]"),
        (np.full((30, 4), np.nan, np.float32), r"not in \[0, 1\]"),
    ],
)
def test_files_that_hold_no_images(tmp_path, array, words):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(FileError, match=words):
        data.load_file(tmp_path / "x.npy")


def test_binarized_is_bernoulli():
    x = torch.arange(256, dtype=torch.uint8).repeat(4000, 1)
    for values in (x, x.float() / 255.0):
        drawn = data.binarized(values)
        assert drawn.dtype == torch.bool
        p = torch.arange(256) / 255.0
        assert ((drawn.float().mean(0) - p).abs() <= 5 * (p * (1 - p) / 4000).sqrt()).all()
    torch.manual_seed(3)
    first = data.binarized(x)
    torch.manual_seed(3)
    assert torch.equal(first, data.binarized(x))

"""`vae-fast train` under torchrun, its faults and restarts, and data that do not fit in memory."""

import re

import interpreters
import numpy as np
import pytest
import torch
from distributed_runs import command, environment, free_port, started_directly
from training_runs import images, untimed

from vae_fast import cli, data
from vae_fast.errors import FileError
from vae_fast.training import checkpoint

# --- the command under torchrun ---------------------------------------------------------------------------------------


def torchrun(*command, restarts=0, **more):
    run = ["--nproc-per-node", 2, "--master-port", free_port(), "--max-restarts", restarts, *command]
    return interpreters.run("-m", "torch.distributed.run", *run, environment=environment(**more), timeout=120)


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
    assert "restart 1: the steps after the checkpoint are repeated; continuing after 2 epochs and 1 steps" in done.stderr
    assert done.stdout.count("epoch 3/3") == 1  # rank 0 alone prints
    assert done.stdout.count("epoch 1/3") == 1
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        *(".vae_fast-run", "checkpoint.pt", "checkpoint.previous.pt", "config.json", "metrics.csv", "results.json")
    }
    restarted, unbroken = (checkpoint.load(folder / "run" / "checkpoint.pt") for folder in (tmp_path, pair[1]))
    assert untimed(restarted["history"]) == untimed(unbroken["history"])
    assert all(torch.equal(t, unbroken["model"][name]) for name, t in restarted["model"].items())


BREAKING = """
import os, resource, sys
from vae_fast import cli
from vae_fast.training import checkpoint
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
        "restart 1: .*continuing after 1 epochs and 2 steps",
        f"{path}: not a checkpoint, broken or truncated: .* fell back to checkpoint.previous.pt; restart 2: .* after 2 epochs and 1 steps",
    ):
        assert re.search(words, done.stderr), done.stderr
    restarted, unbroken = (checkpoint.load(folder / "run" / "checkpoint.pt") for folder in (tmp_path, pair[1]))
    assert all(torch.equal(t, unbroken["model"][name]) for name, t in restarted["model"].items())


def test_full_disk_ends_every_process(tmp_path):
    np.save(tmp_path / "x.npy", images(230, 16).numpy())
    (tmp_path / "breaking.py").write_text(BREAKING)
    ends = started_directly(tmp_path / "breaking.py", *command(tmp_path), TORCHELASTIC_RESTART_COUNT="0")
    path = re.escape(str(tmp_path / "run" / "checkpoint.pt"))
    for rank, (_, err, code) in enumerate(ends):
        assert code == 2
        assert re.search(f"^vae-fast: error: {'rank 0: ' if rank else ''}{path}: cannot be written", err, re.MULTILINE), err


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
    for _, err, code in started_directly("-m", "vae_fast", "train", "--out", tmp_path / "run", "--resume", "--shard"):
        assert code == 2
        assert re.fullmatch("vae-fast: error: .*nothing to resume.*\n", err)
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

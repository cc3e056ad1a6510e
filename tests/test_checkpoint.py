"""Checkpoints: resuming to the same bits, files whole or not there, files that do not fit."""

import errno
import math
import os
import pickle
import sys

import pytest
import torch
from training_runs import images, run, small, untimed

from vae_fast import _archive as archive
from vae_fast import training
from vae_fast.errors import DivergedError, FileError
from vae_fast.files import atomic_write
from vae_fast.training import checkpoint

# --- resuming ---------------------------------------------------------------------------------------------------------


def same_bits(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_resumed_run_has_the_bits_of_an_unbroken_one(tmp_path):
    unbroken, want = run(tmp_path, 4, name="unbroken")
    run(tmp_path, 2)
    # Another process: other initial weights, another state of torch's generator.
    resumed, got = run(tmp_path, 4, resume=True, model_seed=77, torch_seed=88)
    assert untimed(got) == untimed(want)
    assert same_bits(resumed, unbroken)
    a, b = checkpoint.load(tmp_path / "unbroken"), checkpoint.load(tmp_path / "checkpoint.pt")
    assert torch.equal(a["shuffle"], b["shuffle"])
    assert torch.equal(a["rng"]["cpu"], b["rng"]["cpu"])
    moments = [[s["exp_avg_sq"] for s in c["optimizer"]["state"].values()] for c in (a, b)]
    assert all(torch.equal(p, q) for p, q in zip(*moments, strict=True))


def test_run_killed_inside_an_epoch_resumes_to_the_same_bits(tmp_path):
    unbroken, want = run(tmp_path, 3, name="unbroken")
    model, calls = small(), 0
    losses = model.losses

    def dies(x, *rest):
        nonlocal calls
        calls += 1
        if calls == 11:  # 4 steps an epoch, 1 evaluation: in the middle of the third
            raise KeyboardInterrupt
        return losses(x, *rest)

    object.__setattr__(model, "losses", dies)
    torch.manual_seed(5)
    options = {"valid": images(30), "batch_size": 50, "progress": False, "checkpoint": tmp_path / "checkpoint.pt"}
    with pytest.raises(KeyboardInterrupt):
        training.fit(model, images(), epochs=3, **options)
    assert checkpoint.load(tmp_path / "checkpoint.pt")["epoch"] == 2
    resumed, got = run(tmp_path, 3, resume=True, model_seed=77, torch_seed=88)
    assert untimed(got) == untimed(want)
    assert same_bits(resumed, unbroken)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    done, want = run(tmp_path, 2)
    again, got = run(tmp_path, 2, resume=True, model_seed=9)
    assert got == want
    assert same_bits(again, done)


def test_callbacks_see_the_written_checkpoint(tmp_path):
    epochs = []
    path = tmp_path / "checkpoint.pt"
    run(tmp_path, 2, callbacks=[lambda history: epochs.append((len(history), checkpoint.load(path)["epoch"]))])
    assert epochs == [(1, 1), (2, 2)]


def test_diverged_run_keeps_the_last_good_checkpoint(tmp_path):
    model = small()

    def poison(history):
        if len(history) == 2:
            with torch.no_grad():
                model.decoder[-1].bias[0] = math.nan

    path = tmp_path / "checkpoint.pt"
    with pytest.raises(DivergedError, match=r"epoch 3: the mean loss is nan.*holds epoch 2"):
        training.fit(model, images(), epochs=5, batch_size=50, checkpoint=path, callbacks=[poison], progress=False)
    state = checkpoint.load(path)
    assert state["epoch"] == 2
    assert all(t.isfinite().all() for t in state["model"].values())


# --- checkpoints that do not fit --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    run(folder, 1, config={"dataset": "noise"})
    return (folder / "checkpoint.pt").read_bytes()


def refused(path, words, **options):
    with pytest.raises(FileError, match=words) as error:
        run(path.parent, 2, resume=True, name=path.name, **({"config": {"dataset": "noise"}} | options))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_checkpoint_is_plain_and_ours(tmp_path, good):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(good)
    state = torch.load(path, weights_only=True)
    assert (state["format"], state["epoch"], state["config"]["dataset"]) == ("vae_fast.checkpoint", 1, "noise")
    run(tmp_path, 2, resume=True, config={"dataset": "noise"})


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.2, 0.5, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 0.9999])
def test_truncated_anywhere(tmp_path, good, share):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(good[: int(share * len(good))])
    refused(path, "not a checkpoint, broken or truncated")


@pytest.mark.parametrize("content", [b"hello", b"\x80\x04K\x01.", b"PK\x03\x04" + b"\0" * 100, b"\0" * 4096])
def test_foreign_files(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    refused(path, "not a checkpoint, broken or truncated")


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize(
    ("writer", "words"),
    [
        (torch.save, "it could run code"),
        (lambda value, path: path.write_bytes(pickle.dumps(value)), "not a checkpoint"),
        (lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False), "not a checkpoint"),
    ],
)
def test_code_in_a_checkpoint_is_not_run(tmp_path, writer, words):
    path, mark = tmp_path / "checkpoint.pt", tmp_path / "mark"
    writer({"format": "vae_fast.checkpoint", "bomb": Bomb(mark)}, path)
    refused(path, words)
    assert not mark.exists()


def test_flipped_bit(tmp_path, good):
    """torch.load would take it."""
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(good)
    weights = checkpoint.load(path)["model"]["decoder.4.weight"].numpy().tobytes()
    at = good.index(weights) + 17
    path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
    torch.load(path, weights_only=True)
    refused(path, "checksum of .* does not match")


def change(good, path, edit):
    """A file that was made with care: its digest is right."""
    path.write_bytes(good)
    state = torch.load(path, weights_only=True)
    edit(state)
    written(path, state)
    return path


def written(path, state):
    with atomic_write(path) as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "packed", lambda value: value)
        archive.write_archive(file, state)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda s: s.update(format="other"), "not a checkpoint of vae_fast"),
        (lambda s: s.update(version=3), "format version 3: this release reads 2 and 1"),
        (lambda s: s.pop("shuffle"), "'shuffle' is NoneType, expected Tensor"),
        (lambda s: s["history"].clear(), "one record of numbers for each of 1 epochs"),
        (lambda s: s["history"][0].pop("loss"), "one record of numbers"),
        (lambda s: s["model"].pop("encoder.mu.weight"), "encoder.mu.weight is only in the model"),
        (lambda s: s["model"].update(extra=torch.zeros(1)), "extra is only in the file"),
        (
            lambda s: s["model"].update({"encoder.mu.bias": torch.zeros(3)}),
            r"encoder.mu.bias is \(3,\).*expected \(2,\)",
        ),
        (
            lambda s: s["model"].update({"encoder.mu.bias": torch.zeros(2).double()}),
            "float64, expected .* torch.float32",
        ),
        (lambda s: s["optimizer"]["param_groups"][0]["params"].pop(), "parameter groups of"),
        (lambda s: s["optimizer"].pop("state"), "optimizer state"),
        (lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)), r"exp_avg is \(3,\)"),
        (lambda s: s.update(shuffle=torch.zeros(3)), "random number generator"),
        (lambda s: s["rng"].clear(), "random number generator"),
    ],
)
def test_broken_inside(tmp_path, good, edit, words):
    refused(change(good, tmp_path / "checkpoint.pt", edit), words)


def test_not_a_dictionary(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save([torch.zeros(3)], path)
    refused(path, "not a checkpoint of vae_fast")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"config": {"dataset": "mnist"}}, "trained with dataset='noise', this run has dataset='mnist'"),
        ({"config": {}}, "trained with dataset='noise', this run has dataset=None"),
        ({"batch_size": 40}, "batch_size=50, this run has batch_size=40"),
        ({"lr": 0.5}, "lr=0.001, this run has lr=0.5"),
        ({"seed": 1}, "seed=0, this run has seed=1"),
        ({"drop_last": False}, "drop_last=True"),
        ({"amp": torch.bfloat16}, "amp="),
    ],
)
def test_other_settings(tmp_path, good, options, words):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(good)
    refused(path, words, **options)


def test_refused_checkpoint_changes_nothing(tmp_path, good):
    path = change(good, tmp_path / "checkpoint.pt", lambda s: s["rng"].clear())
    model = small(3)
    before, noise = [p.clone() for p in model.parameters()], torch.get_rng_state()
    with pytest.raises(FileError):
        training.fit(model, images(), valid=images(30), epochs=2, batch_size=50, checkpoint=path, resume=True,
                     config={"dataset": "noise"}, progress=False)  # fmt: skip
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), noise)


def test_missing_checkpoint(tmp_path):
    refused(tmp_path / "checkpoint.pt", "No such file")


# --- whole or not at all ----------------------------------------------------------------------------------------------


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    run(tmp_path, 1)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match=r"checkpoint.pt: cannot be written: No space left on device"):
        run(tmp_path, 2, resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits on Windows")
def test_disk_that_fills_up_inside_torch_save(tmp_path, python):
    """A real failed write, halfway through: the process may write no file longer than 4 kB."""
    program = f"""
import resource, torch
from pathlib import Path
from vae_fast import training
from vae_fast.models import MLPVAE
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
path = Path({str(tmp_path)!r}) / "checkpoint.pt"
path.write_bytes(b"old")
try:
    training.fit(MLPVAE(2, 16, 64), torch.rand(50, 16), epochs=1, batch_size=50, checkpoint=path, progress=False)
except training.checkpoint.FileError as error:
    print(error)
"""
    done = python(program)
    assert done.stdout.startswith(f"{tmp_path / 'checkpoint.pt'}: cannot be written")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert (tmp_path / "checkpoint.pt").read_bytes() == b"old"


def test_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        run(tmp_path / "file", 1)


@pytest.mark.cuda
def test_cuda_run_resumes_with_its_noise(tmp_path):
    def cuda_run(epochs, resume, seed, name):
        model = small(seed).cuda()
        torch.manual_seed(seed)
        options = {"batch_size": 50, "checkpoint": tmp_path / name, "resume": resume, "progress": False}
        return training.fit(model, images(), epochs=epochs, **options)

    want = cuda_run(4, False, 0, "unbroken")
    cuda_run(2, False, 0, "broken")
    got = cuda_run(4, True, 9, "broken")
    assert [r["loss"] for r in got] == pytest.approx([r["loss"] for r in want], rel=1e-5)

"""training.fit and checkpoints: the arithmetic of epochs, resuming to the same bits, files whole or not there."""

import errno
import math
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vae_fast import checkpoint, training
from vae_fast._errors import DivergedError, FileError
from vae_fast.models import MLPVAE

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
TIMES = ("samples_per_second", "seconds")


def images(n=230, d=16):
    return torch.randint(0, 256, (n, d), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def small(seed=0):
    return MLPVAE(latent_dim=2, data_dim=16, hidden_dim=8, generator=torch.Generator().manual_seed(seed))


def untimed(history):
    return [{k: v for k, v in record.items() if k not in TIMES} for record in history]


def run(folder, epochs, *, resume=False, model_seed=0, torch_seed=5, name="checkpoint.pt", **options):
    """One run as in a process of its own."""
    model = small(model_seed)
    torch.manual_seed(torch_seed)
    options = {"valid": images(30), "batch_size": 50, "progress": False} | options
    history = training.fit(model, images(), epochs=epochs, checkpoint=folder / name, resume=resume, **options)
    return model, history


class Constant(nn.Module):
    """A model without KL whose loss is the mean of its data; it writes down the batches it sees."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))
        self.seen = []

    def loss(self, x):
        self.seen.append(x.clone())
        return x.mean() + 0.0 * self.shift


# --- epochs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_it_learns(device):
    x = (images(400) > 250).to(torch.uint8) * 255
    model = small().to(device)
    history = training.fit(model, x, valid=x[:100], epochs=8, lr=1e-2, progress=False)
    assert [r["epoch"] for r in history] == list(range(1, 9))
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["valid_loss"] < 0.5 * history[0]["loss"]
    assert all(set(r) == set(training.COLUMNS) for r in history)
    assert all(r["samples_per_second"] == pytest.approx(400 / r["seconds"]) for r in history)


def test_last_partial_batch_is_left_out_as_in_the_source():
    model = Constant()
    x = torch.arange(230.0)[:, None]
    (record,) = training.fit(model, x, epochs=1, batch_size=100, progress=False)
    assert [len(b) for b in model.seen] == [100, 100]
    seen = torch.cat(model.seen)
    assert len(seen.unique()) == 200
    assert record["loss"] == pytest.approx(seen.mean().item())
    assert math.isnan(record["kl"])


def test_last_partial_batch_counts_by_its_size():
    model = Constant()
    x = torch.arange(230.0)[:, None]
    (record,) = training.fit(model, x, epochs=1, batch_size=100, drop_last=False, progress=False)
    assert [len(b) for b in model.seen] == [100, 100, 30]
    assert torch.equal(torch.cat(model.seen).sort(0).values, x)
    assert record["loss"] == pytest.approx(x.mean().item())  # not the mean of the three batch means


def test_shuffling_has_its_own_generator():
    orders = []
    for seed, noise in ((1, 0), (1, 99), (2, 0)):
        model = Constant()
        torch.manual_seed(noise)
        training.fit(model, torch.arange(20.0)[:, None], epochs=2, batch_size=10, seed=seed, progress=False)
        orders.append(torch.cat(model.seen).flatten())
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0][:20], orders[0][20:])  # each epoch in another order


def test_recorded_loss_is_the_mean_over_the_epoch():
    """By hand: the same steps in a loop of one's own."""
    x = images()
    model = small()
    torch.manual_seed(3)
    (record,) = training.fit(model, x, epochs=1, batch_size=50, seed=4, progress=False)
    other = small()
    optimizer = torch.optim.Adam(other.parameters(), lr=1e-3)
    torch.manual_seed(3)
    order = torch.randperm(230, generator=torch.Generator().manual_seed(4))
    losses = []
    for rows in order[:200].split(50):
        loss, kl = other.losses(x[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append((loss.item(), kl.item()))
    assert record["loss"] == pytest.approx(sum(a for a, _ in losses) / 4, rel=1e-5)
    assert record["kl"] == pytest.approx(sum(b for _, b in losses) / 4, rel=1e-5)


def test_no_host_synchronisation_per_step():
    class Count(TorchDispatchMode):
        items = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.items += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    counts = []
    for batch_size in (200, 2):
        with Count() as mode:
            training.fit(small(), images(200), epochs=1, batch_size=batch_size, progress=False)
        counts.append(mode.items)
    assert counts[0] == counts[1]


def test_validation_does_not_disturb_the_run(tmp_path):
    (a, with_it), (b, without) = run(tmp_path, 2, name="a"), run(tmp_path, 2, name="b", valid=None)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert "valid_loss" in with_it[0]
    assert "valid_loss" not in without[0]


def test_evaluate():
    model, x = small(), images(57)
    model.train()
    first = training.evaluate(model, x, batch_size=10)
    torch.manual_seed(1234)  # the noise of an evaluation is its own
    before = torch.get_rng_state()
    assert training.evaluate(model, x, batch_size=10) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert first["kl"] == pytest.approx(model.losses(x).kl.item(), rel=1e-5)  # the last batch of 7 counts by its size
    with pytest.raises(ValueError, match="at least one row"):
        training.evaluate(model, x[:0])


def test_evaluate_log_prob_is_above_the_elbo():
    model, x = small(), images(200)
    elbo = -training.evaluate(model, x)["loss"]
    log_prob = training.evaluate_log_prob(model, x, 200, batch_size=64)
    assert elbo < log_prob < 0.0


def test_mixed_precision():
    models = small(), small()
    full, mixed = (
        training.fit(m, images(), epochs=2, batch_size=50, amp=amp, progress=False)
        for m, amp in zip(models, (None, torch.bfloat16), strict=True)
    )
    assert full[-1]["loss"] != mixed[-1]["loss"]
    assert mixed[-1]["loss"] == pytest.approx(full[-1]["loss"], rel=0.05)
    assert all(p.dtype == torch.float32 for p in models[1].parameters())


def test_progress_bar_is_optional(monkeypatch, capsys):
    training.fit(small(), images(), epochs=2, batch_size=50, progress=True)
    assert "epoch 2/2" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    training.fit(small(), images(), epochs=1, batch_size=50, progress=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"batch_size": 231}, r"train has shape \(230, 16\).*at least 231"),
        ({"train": torch.zeros(16)}, r"train has shape \(16,\)"),
        ({"train": [1.0]}, "train: expected a torch.Tensor, got list"),
        ({"valid": torch.zeros(0, 16)}, "valid has shape"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"amp": torch.float16}, "amp=torch.float16"),
        ({"resume": True}, "checkpoint=None"),
        ({"model": nn.Linear(2, 2)}, r"method loss\(x\), got Linear"),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        training.fit(**({"model": small(), "train": images(), "progress": False} | options))


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
    path.write_bytes(good)
    state = torch.load(path, weights_only=True)
    edit(state)
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda s: s.update(format="other"), "not a checkpoint of vae_fast"),
        (lambda s: s.update(version=2), "format version 2: this release reads 1"),
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
def test_disk_that_fills_up_inside_torch_save(tmp_path):
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
except training.checkpoints.FileError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'checkpoint.pt'}: cannot be written")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert (tmp_path / "checkpoint.pt").read_bytes() == b"old"


def test_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        run(tmp_path / "file", 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
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

"""training.fit: the arithmetic of epochs."""

import math
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from training_runs import DEVICES, images, run, small

from vae_fast import training


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


class Own(type(small())):
    """A VAE whose loss is not that of the class it comes from."""

    def loss(self, x, *args, **kwargs):
        return 3.0 + 0.0 * sum(p.sum() for p in self.parameters())


class Both(Own):
    """One that has both."""

    def losses(self, x, *args, **kwargs):
        return self.loss(x) + 1.0, torch.tensor(2.0)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("kind, loss, kl", [(Own, 3.0, math.nan), (Both, 4.0, 2.0)], ids=["loss", "losses"])
def test_a_subclass_is_trained_on_its_own_loss(kind, loss, kl, compiled):
    model = kind(latent_dim=2, hidden_dim=8)
    trained = torch.compile(model, backend="eager") if compiled else model
    (record,) = training.fit(trained, images(20), valid=images(20), epochs=1, batch_size=10, progress=False)
    assert (record["loss"], record["valid_loss"]) == (loss, loss)
    assert record["kl"] == pytest.approx(kl, nan_ok=True)


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

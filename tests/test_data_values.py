"""A run looks at its data once, before its first step, and says what was to blame where a loss is no longer finite."""

import numpy as np
import pytest
import torch
from torch import nn

from vae_fast import training
from vae_fast.data import values
from vae_fast.errors import DivergedError
from vae_fast.models import MLPVAE, VAE

NAN = float("nan")


def small(**kwargs):
    return MLPVAE(latent_dim=2, data_dim=16, hidden_dim=8, **kwargs)


def gaussian():
    return VAE(nn.Linear(16, 4), nn.Linear(2, 16), latent_dim=2, likelihood="gaussian")


class Steps(nn.Module):
    """A loss of one's own that counts its calls."""

    def __init__(self):
        super().__init__()
        self.w, self.calls = nn.Parameter(torch.zeros(())), 0

    def loss(self, x):
        self.calls += 1
        return (x.float().mean() - self.w).square()


def images(value=None, row=173, n=300):
    x = torch.rand(n, 16)
    if value is not None:
        x[row, 5] = value
    return x


@pytest.mark.parametrize("value", [NAN, 255.0, -0.5, float("inf")])
@pytest.mark.parametrize("name", ["train", "valid"])
def test_a_bernoulli_model_asks_for_grey_values(name, value):
    data = {"train": images(), "valid": images()} | {name: images(value)}
    with pytest.raises(ValueError, match=rf"^{name}\[173, 5\] = {value}: expected values in \[0, 1\].*check_data=False") as caught:
        training.fit(small(), data["train"], valid=data["valid"], epochs=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("likelihood", ["bernoulli", "bernoulli_probs"])
def test_both_bernoulli_likelihoods_do(likelihood):
    model = VAE(nn.Linear(16, 4), nn.Sequential(nn.Linear(2, 16), nn.Sigmoid()), latent_dim=2, likelihood=likelihood)
    with pytest.raises(ValueError, match=r"train\[173, 5\] = 2\.0: expected values in"):
        training.fit(model, images(2.0), epochs=1)


def test_others_ask_for_finite_ones():
    training.fit(gaussian(), images(255.0), epochs=1)
    for model in (gaussian(), Steps()):
        with pytest.raises(ValueError, match=r"train\[173, 5\] = nan: expected finite numbers"):
            training.fit(model, images(NAN), epochs=1)


def test_it_comes_before_the_first_step():
    model = Steps()
    with pytest.raises(ValueError, match="valid"):
        training.fit(model, images(), valid=images(NAN), epochs=1)
    assert model.calls == 0


def test_bytes_are_not_read():
    x = torch.full((300, 16), 255, dtype=torch.uint8)
    training.fit(small(), x, valid=x > 3, epochs=1)


def test_a_transform_may_scale_them():
    model = small()
    training.fit(model, images() * 255.0, epochs=1, transform=lambda x: x / 255.0)
    with pytest.raises(ValueError, match=r"train\[173, 5\] = nan: expected finite numbers"):
        training.fit(model, images(NAN), epochs=1, transform=lambda x: x / 255.0)


def test_it_can_be_left_out():
    assert len(training.fit(small(), images(1.5), epochs=1, check_data=False)) == 1
    with pytest.raises(TypeError, match=r"check_data=1: expected True or False"):
        training.fit(small(), images(), epochs=1, check_data=1)


def test_evaluation_asks_too():
    model, bad = small(), images(3.0)
    for evaluate in (training.evaluate, lambda *a, **k: training.evaluate_log_prob(*a, 2, **k)):
        with pytest.raises(ValueError, match=r"data\[173, 5\] = 3\.0: expected values in"):
            evaluate(model, bad)
        evaluate(model, bad, check_data=False)


def test_mapped_data_are_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(values, "_AT_ONCE", 160)
    np.save(tmp_path / "x.npy", images(NAN, row=299).numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="r+"))
    read = []
    monkeypatch.setattr(torch.Tensor, "aminmax", lambda t, real=torch.Tensor.aminmax: read.append(t.shape) or real(t))
    with pytest.raises(ValueError, match=r"train\[299, 5\] = nan"):
        training.fit(small(), mapped, epochs=1, resident=False)
    assert set(read) == {(10, 16)}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_processes_look_at_all_of_it_together(size, monkeypatch):
    monkeypatch.setattr(values, "_AT_ONCE", 160)
    found = [values.complaint("train", images(NAN), "finite", rank=rank, size=size) for rank in range(size)]
    assert [text for text in found if text] == ["train[173, 5] = nan: expected finite numbers"]
    assert found.index("train[173, 5] = nan: expected finite numbers") == 17 % size


def test_a_wrong_value_that_came_later_is_named():
    """Not blamed on the learning rate."""
    x = images()

    def spoil(history):
        x[42, 3] = NAN

    with pytest.raises(DivergedError, match=r"^epoch 2: the mean loss is nan: train\[42, 3\] = nan: expected finite numbers$"):
        training.fit(gaussian(), x, epochs=3, callbacks=[spoil], drop_last=False)


def test_a_transform_is_named():
    def logarithm(x):
        return (x - 2.0).log()

    with pytest.raises(DivergedError, match=r"the mean loss is nan: transform\(train\)\[0, 0\] = nan: expected finite numbers"):
        training.fit(gaussian(), images(), epochs=1, transform=logarithm)


def test_a_learning_rate_is_named_with_what_it_did():
    with pytest.raises(
        DivergedError, match=r"the data are finite, the weights are not \(encoder\.weight first\).*learning rate than 1e\+30"
    ):
        training.fit(gaussian(), images(), epochs=3, lr=1e30)


def test_of_an_optimizer_its_own_rate_is_named():
    model = gaussian()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e20)
    with pytest.raises(DivergedError, match=r"smaller learning rate than 1e\+20"):
        training.fit(model, images(), epochs=3, optimizer=optimizer)

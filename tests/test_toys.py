"""The toy densities: shapes, seeds, and that the points are where the description says, as often as it says."""

import math

import pytest
import torch

from vae_fast.data.toys import KNOWN, TOYS, toy, toy_log_prob


@pytest.mark.parametrize("name", TOYS)
def test_shape_dtype_and_seed(name):
    before = torch.random.get_rng_state()
    x = toy(name, 1001, seed=3)
    assert x.shape == (1001, 1 if name == "cats" else 2)
    assert x.dtype == torch.float32
    assert torch.isfinite(x).all()
    assert torch.equal(x, toy(name, 1001, seed=3))
    assert not torch.equal(x, toy(name, 1001, seed=4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert toy(name, 1).shape == x[:1].shape


@pytest.mark.parametrize("name", TOYS)
def test_rows_are_in_no_order(name):
    """Halves of the rows look alike: a split into training and test rows is a fair one."""
    first, second = toy(name, 20_000).split(10_000)
    torch.testing.assert_close(first.mean(0), second.mean(0), rtol=0.0, atol=0.1)
    torch.testing.assert_close(first.std(0), second.std(0), rtol=0.05, atol=0.0)


@pytest.mark.parametrize("name", KNOWN)
def test_log_prob_integrates_to_one(name):
    if name == "cats":
        grid, cell = torch.linspace(0.0, 9.0, 2001, dtype=torch.float64)[:, None], 9.0 / 2000
    else:
        side = torch.linspace(-10.0, 10.0, 801, dtype=torch.float64)
        grid, cell = torch.cartesian_prod(side, side), (20.0 / 800) ** 2
    assert (toy_log_prob(name, grid).exp().sum() * cell).item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("name", KNOWN)
def test_points_follow_the_log_prob(name):
    """Of the points, as many lie in a box as the density puts there."""
    n = 200_000
    x = toy(name, n, seed=5)
    low, high = x.quantile(0.3, dim=0).double(), x.quantile(0.6, dim=0).double()
    steps = 400
    axes = [a + (torch.arange(steps, dtype=torch.float64) + 0.5) / steps * (b - a) for a, b in zip(low, high, strict=True)]
    grid = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    share = toy_log_prob(name, grid).exp().mean().item() * math.prod((high - low).tolist())
    found = ((x > low) & (x < high)).all(1).double().mean().item()
    assert share > 0.01
    assert found == pytest.approx(share, abs=5.0 * math.sqrt(share / n))


def test_cats():
    x = toy("cats", 100_000)
    assert x.mean().item() == pytest.approx(0.5 * 3.4 + 0.5 * 4.9, abs=0.02)
    assert x.var().item() == pytest.approx(0.5 * 0.4**2 + 0.5 * 0.6**2 + 0.25 * 1.5**2, rel=0.02)
    at_three = 0.5 * math.exp(-0.5) / 0.4 + 0.5 * math.exp(-0.5 * (1.9 / 0.6) ** 2) / 0.6
    assert toy_log_prob("cats", torch.tensor([[3.0]])).exp().item() == pytest.approx(at_three / math.sqrt(2.0 * math.pi), rel=1e-5)


def test_checkerboard():
    x = toy("checkerboard", 80_000)
    assert x.abs().max() <= 4.0
    squares = torch.floor((x + 4.0) / 2.0).long()
    counts = torch.bincount(squares[:, 0] * 4 + squares[:, 1], minlength=16)
    assert (counts > 0).sum() == 8
    assert ((squares.sum(1) % 2) == (squares.sum(1)[0] % 2)).all()
    assert (counts[counts > 0] - 10_000).abs().max() < 500


def test_rings():
    radius = toy("rings", 60_000).norm(dim=1)
    nearest = radius.round()
    assert sorted(nearest.unique().tolist()) == [1.0, 2.0, 3.0]
    shares = torch.bincount(nearest.long())[1:] / 60_000
    torch.testing.assert_close(shares, torch.tensor([1.0, 2.0, 3.0]) / 6.0, rtol=0.03, atol=0.0)
    assert (radius - nearest).abs().max() < 0.5


def test_sine_inverse():
    t, x = toy("sine-inverse", 20_000).double().unbind(1)
    noise = t - x - 0.3 * torch.sin(2.0 * math.pi * x)
    assert noise.abs().max() <= 0.1 + 1e-6
    assert noise.std().item() == pytest.approx(0.2 / math.sqrt(12.0), rel=0.02)
    assert 0.0 <= x.min() < 0.01 < 0.99 < x.max() <= 1.0
    middle = x[(t - 0.5).abs() < 0.02]  # three branches over t = 0.5: what makes the problem one for a mixture
    assert all(((middle > a) & (middle < b)).any() for a, b in ((0.1, 0.3), (0.45, 0.55), (0.7, 0.9)))


def test_eight_gaussians():
    x = toy("eight-gaussians", 40_000)
    which = torch.round(torch.atan2(x[:, 1], x[:, 0]) / (2.0 * math.pi / 8)).long() % 8
    shares = torch.bincount(which) / 40_000
    torch.testing.assert_close(shares, torch.full((8,), 1.0 / 8), rtol=0.06, atol=0.0)
    assert x[which == 2].mean(0).tolist() == pytest.approx([0.0, 3.0], abs=0.03)


def test_spiral():
    x = toy("spiral", 20_000)
    assert x.norm(dim=1).max() < 4.1
    torch.testing.assert_close(x.mean(0), torch.zeros(2), rtol=0.0, atol=0.05)  # two arms, opposite to each other


def test_two_moons():
    x = toy("two-moons", 20_000)
    distance = torch.minimum((x.norm(dim=1) - 1.0).abs(), ((x - torch.tensor([1.0, 0.5])).norm(dim=1) - 1.0).abs())
    assert distance.max() < 0.45
    assert x.mean(0).tolist() == pytest.approx([0.5, 0.25], abs=0.02)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: toy("moons"), ["name='moons'", "'two-moons'", "'galaxy'"]),
        (lambda: toy("cats", 0), ["n=0", "at least 1"]),
        (lambda: toy_log_prob("spiral", torch.zeros(1, 2)), ["name='spiral'", "'galaxy'"]),
        (lambda: toy_log_prob("cats", torch.zeros(3, 2)), ["x has shape (3, 2)", "(n, 1)"]),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)

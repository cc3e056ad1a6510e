"""models.MixtureDensityNetwork against torch.distributions, and on a problem with several answers."""

import math

import pytest
import torch
from torch import nn

from vae_fast.models import MixtureDensityNetwork, mdn


@pytest.fixture(autouse=True)
def _one_thread(_reproducible):
    torch.set_num_threads(1)


def network(target_dim=2, k=3, **options):
    torch.manual_seed(1)
    return MixtureDensityNetwork(nn.Sequential(nn.Linear(4, 8), nn.Tanh()), 8, k, target_dim, **options).double()


def as_torch(out, min_scale=0.0):
    scale = (out.log_scale if out.log_scale.ndim == out.means.ndim else out.log_scale.unsqueeze(-1)).exp().clamp(min=min_scale)
    components = torch.distributions.Independent(torch.distributions.Normal(out.means, scale.expand_as(out.means)), 1)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=out.weight_logits), components)


@pytest.mark.parametrize("min_scale", [0.0, 0.9])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("target_dim", [1, 3])
def test_log_prob_and_loss_are_torch_distributions(backend, device, target_dim, shared, min_scale):
    model = network(target_dim, shared_scale=shared, min_scale=min_scale).to(device)
    x, y = torch.randn(6, 5, 4).double().to(device), torch.randn(6, 5, target_dim).double().to(device)
    out = model(x)
    assert out.weight_logits.shape == (6, 5, 3) and out.means.shape == (6, 5, 3, target_dim)
    assert out.log_scale.shape == ((6, 5, 3) if shared else (6, 5, 3, target_dim))
    assert out.log_scale.exp().min() >= min_scale * (1 - 1e-12)
    want = as_torch(out, min_scale)
    log_prob = model.log_prob(x, y)
    torch.testing.assert_close(log_prob, want.log_prob(y), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.mean(x), want.mean, rtol=1e-10, atol=1e-10)
    for reduction, value in (("none", -log_prob), ("mean", -log_prob.mean()), ("sum", -log_prob.sum())):
        torch.testing.assert_close(model.loss(x, y, reduction), value)
    parameters = list(model.parameters())
    got = torch.autograd.grad(model.loss(x, y), parameters)
    for a, b in zip(got, torch.autograd.grad(-as_torch(model(x), min_scale).log_prob(y).mean(), parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_one_call_of_the_kernel_and_targets_broadcast(monkeypatch):
    model, calls = network(), []
    real = mdn.F.mdn_log_prob
    monkeypatch.setattr(mdn.F, "mdn_log_prob", lambda *a, **k: calls.append(k) or real(*a, **k))
    grid = torch.randn(7, 1, 2).double()
    assert model.log_prob(torch.randn(5, 4).double(), grid).shape == (7, 5)
    assert calls == [{"min_scale": 1e-3}]


def test_the_density_sums_to_one():
    model = network(target_dim=1)
    x, y = torch.randn(3, 4).double(), torch.linspace(-30, 30, 60001).double().reshape(-1, 1, 1)
    mass = model.log_prob(x, y).exp().sum(0) * (60 / 60000)
    torch.testing.assert_close(mass, torch.ones(3).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shared", [False, True])
def test_samples_have_the_distribution(device, shared):
    model = network(target_dim=2, shared_scale=shared).to(device)
    x, n = torch.randn(3, 4).double().to(device), 40_000
    y = model.sample(x, n, generator=torch.Generator(device).manual_seed(0))
    assert y.shape == (n, 3, 2) and not y.requires_grad
    p = as_torch(model(x))
    error = (y.mean(0) - p.mean).abs() / (p.variance / n).sqrt()
    assert error.max() < 5
    torch.testing.assert_close(y.var(0), p.variance.detach(), rtol=0.08, atol=0)
    # The probability integral transform tells more than two moments.
    u = (torch.distributions.Normal(p.component_distribution.mean, p.component_distribution.stddev).cdf(y.unsqueeze(-2))).detach()
    u = (p.mixture_distribution.probs.unsqueeze(-1) * u).sum(-2).sort(0).values
    grid = (torch.arange(n, device=device) + 0.5).double() / n
    assert (u - grid[:, None, None]).abs().max() < 1.95 / math.sqrt(n)
    again = [model.sample(x, generator=torch.Generator(device).manual_seed(s)) for s in (1, 1, 2)]
    assert again[0].shape == (3, 2) and torch.equal(again[0], again[1]) and not torch.equal(again[0], again[2])
    assert model.sample(x[:0], 5).shape == (5, 0, 2) and model.sample(x[:0]).shape == (0, 2)


def test_an_inverse_problem_with_three_answers(backend):
    """Bishop's: x = y + 0.3 sin(2 pi y) + noise, y from x. Between the folds a mean is no answer; the modes are."""
    torch.manual_seed(0)
    y = torch.rand(1000, 1)
    x = y + 0.3 * torch.sin(2 * math.pi * y) + 0.1 * (torch.rand(1000, 1) - 0.5)
    x, y = 4.0 * (x - 0.5), 4.0 * (y - 0.5)
    model = MixtureDensityNetwork(nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh()), 32, 5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        model.loss(x, y).backward()
        optimizer.step()
    residual = (model.mean(x) - y).detach()
    by_least_squares = -0.5 * (1 + math.log(2 * math.pi * residual.square().mean().item()))
    assert -model.loss(x, y).item() > by_least_squares + 1.0
    drawn = model.sample(torch.zeros(1, 1), 4000).flatten()
    near = [((drawn - answer).abs() < 0.32).float().mean() for answer in (-1.168, 0.0, 1.168)]  # the roots, with the noise's reach
    assert min(near) > 0.1
    assert sum(near) > 0.9


def test_min_scale_stops_the_collapse(backend):
    """Two targets for one input: without a floor the likelihood has no bound."""
    x, y = torch.zeros(2, 1), torch.tensor([[0.0], [1.0]])
    torch.manual_seed(0)
    model = MixtureDensityNetwork(nn.Identity(), 1, 2, min_scale=0.05)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss = model.loss(x, y)
        loss.backward()
        optimizer.step()
    best = math.log(2) + math.log(0.05) + 0.5 * math.log(2 * math.pi)
    assert best - 1e-4 < loss.item() < best + 0.1


def test_compiles_without_a_graph_break(backend):
    model, x, y = network(), torch.randn(5, 4).double(), torch.randn(5, 2).double()
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model.loss, fullgraph=True, backend="aot_eager")(x, y), model.loss(x, y), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden_dim": 0}, ("hidden_dim=0", "at least 1")),
        ({"n_components": 2.5}, ("n_components=2.5", "int")),
        ({"target_dim": -1}, ("target_dim=-1",)),
        ({"min_scale": -1.0}, ("min_scale=-1.0",)),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises((TypeError, ValueError)) as error:
        MixtureDensityNetwork(nn.Identity(), **{"hidden_dim": 4, "n_components": 3} | options)
    assert all(word in str(error.value) for word in words)


def test_bad_calls():
    model, x = network(), torch.randn(5, 4).double()
    with pytest.raises(ValueError, match=r"y has shape \(5, 3\): expected \(..., 2\)"):
        model.loss(x, torch.zeros(5, 3))
    with pytest.raises(ValueError, match="reduction='max'"):
        model.loss(x, torch.zeros(5, 2), "max")
    with pytest.raises(ValueError, match="num_samples=0"):
        model.sample(x, 0)

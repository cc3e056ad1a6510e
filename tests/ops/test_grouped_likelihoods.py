"""Likelihoods over groups of parameters by name: in an ELBO, in a model that trains and samples, and their draws and means."""

import math

import pytest
import torch
from oracle import assert_refused, leaves
from torch import nn

import vae_fast
from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.models import VAE


def pixels(p):
    return torch.randint(0, 256, (p, 3, 4, 4), dtype=torch.uint8)


# Data, parameters, event dimensions, and the function of the name.
CASES = {
    "categorical": (
        lambda n: torch.randint(5, (n, 4), dtype=torch.uint8),
        lambda n: [torch.randn(n, 4, 5)],
        1,
        vae_fast.categorical_log_prob,
    ),
    "multinomial": (lambda n: torch.randint(3, (n, 7)).float(), lambda n: [torch.randn(n, 7)], 1, vae_fast.multinomial_log_prob),
    "discretized_logistic": (
        lambda n: torch.rand(n, 6),
        lambda n: [torch.randn(n, 6), torch.randn(n, 6) - 2],
        1,
        vae_fast.discretized_logistic_log_prob,
    ),
    "discretized_logistic_mixture": (
        pixels,
        lambda n: [torch.randn(n, 20, 4, 4)],
        3,
        lambda x, p: vae_fast.discretized_logistic_mixture_log_prob(x, p, layout="nchw"),
    ),
}
names = pytest.mark.parametrize("name", CASES)


def given(parameters):
    return parameters[0] if len(parameters) == 1 else tuple(parameters)


@names
def test_an_elbo_takes_it_by_name(name, backend):
    data, parameters, event_dim, log_prob = CASES[name]
    x, recon = data(5), leaves([t.double() for t in parameters(5)])
    mu, logvar = leaves([torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)])
    options = {"likelihood": name, "event_dim": event_dim, "beta": 0.5}
    want = log_prob(x, *recon) - 0.5 * vae_fast.gaussian_kl(mu, logvar)
    torch.testing.assert_close(vae_fast.elbo(x, given(recon), mu, logvar, **options), want)
    for reduction in ("mean", "sum"):
        loss = vae_fast.elbo_loss(x, given(recon), mu, logvar, reduction=reduction, **options)
        plain = -want.mean() if reduction == "mean" else -want.sum()
        torch.testing.assert_close(loss, plain)
        wanted = [*recon, mu, logvar]
        torch.testing.assert_close(torch.autograd.grad(loss, wanted), torch.autograd.grad(plain, wanted, retain_graph=True))


@names
def test_a_bound_of_many_samples_takes_it(name, backend):
    data, parameters, event_dim, log_prob = CASES[name]
    x, z = data(4), torch.randn(3, 4, 2)
    recon = [t.unflatten(0, (3, 4)) for t in parameters(12)]
    mu, logvar = torch.randn(4, 2), torch.randn(4, 2)
    loss = vae_fast.iwae_loss(x, given(recon), z, mu, logvar, likelihood=name, event_dim=event_dim)
    log_q = vae_fast.gaussian_log_prob(z, mu, logvar)
    log_w = log_prob(x, *recon) + vae_fast.gaussian_log_prob(z, torch.zeros(4, 2)) - log_q
    torch.testing.assert_close(loss, -(log_w.logsumexp(0) - math.log(3)).mean())


class Shaped(nn.Module):
    """A linear layer whose output has the shapes of a likelihood's parameters."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes = shapes
        self.layer = nn.Linear(2, sum(math.prod(s) for s in shapes))

    def forward(self, z):
        parts = self.layer(z).split([math.prod(s) for s in self.shapes], -1)
        return given([part.unflatten(-1, s) for part, s in zip(parts, self.shapes, strict=True)])


@names
def test_a_model_trains_and_samples(name):
    torch.manual_seed(0)
    data, parameters, event_dim, _ = CASES[name]
    x = data(40)
    x[:] = x[:1]  # one observation: a decoder can learn it
    shapes = [t.shape[1:] for t in parameters(1)]
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 4))
    vae = VAE(encoder, Shaped(shapes), latent_dim=2, likelihood=name, event_dim=event_dim)
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = vae.loss(x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0] if losses[0] > 0 else losses[-1] < losses[0]
    for mean in (True, False):
        sample = vae.sample(6, mean=mean)
        assert sample.shape == (6, *x.shape[1:])
    draw = vae.draw_of(vae.decode(torch.zeros(6, 2)))
    assert torch.isfinite(vae.loss(draw if draw.dtype != torch.int64 else draw.to(torch.uint8)))


@names
def test_draws_have_the_likelihoods_distribution(name):
    """The mean of -log p over draws is the entropy: of a distribution that is summed out, exactly."""
    torch.manual_seed(1)
    entry, draws = LIKELIHOODS[name], 40_000
    if name == "categorical":
        p = [torch.randn(3, 5).double()]
        entropy = torch.distributions.Categorical(logits=p[0]).entropy().sum()
    elif name == "multinomial":
        p = [torch.randn(6).double()]
        entropy = torch.distributions.Categorical(logits=p[0]).entropy()
    elif name == "discretized_logistic":
        p = [torch.tensor([0.2, -0.9]).double(), torch.tensor([-3.0, -1.0]).double()]
        levels = torch.arange(256, dtype=torch.uint8)[:, None, None]
        log_p = vae_fast.discretized_logistic_log_prob(levels.expand(256, 2, 1), p[0][:, None], p[1][:, None])
        entropy = -(log_p.exp() * log_p).sum()
    else:
        p = [torch.randn(20, 1, 1).double()]
        entropy = None
    wide = [t.expand(draws, *t.shape) for t in p]
    x = entry.draw(wide, torch.Generator().manual_seed(3))
    event_dim = {"categorical": 1, "multinomial": 1, "discretized_logistic": 1, "discretized_logistic_mixture": 3}[name]
    log_p = CASES[name][3](x, *wide)
    assert log_p.shape == (draws,)
    error = 5 * log_p.std().item() / math.sqrt(draws)
    if entropy is not None:
        assert -log_p.mean().item() == pytest.approx(entropy.item(), abs=error)
        mean = x.double().mean(0)
        torch.testing.assert_close(mean, entry.mean(p), rtol=0, atol=5 * x.double().std().item() / math.sqrt(draws))
    else:  # importance weights of another distribution's draws sum to one: E_p[q / p] = 1
        q = [p[0] + 0.2 * torch.randn_like(p[0])]
        ratio = (CASES[name][3](x, q[0].expand(draws, *q[0].shape)) - log_p).exp()
        assert ratio.mean().item() == pytest.approx(1.0, abs=5 * ratio.std().item() / math.sqrt(draws))
        assert event_dim == 3


def test_means_of_pixels_are_those_of_draws():
    torch.manual_seed(2)
    p = torch.randn(20, 1, 1).double()
    p[4::6] = p[5::6] = -4.0  # narrow: a colour's mean given the one before it is nearly linear
    entry = LIKELIHOODS["discretized_logistic_mixture"]
    x = entry.draw([p.expand(50_000, 20, 1, 1)], torch.Generator().manual_seed(5))
    assert ((x * 255).round() / 255 == x).all()
    torch.testing.assert_close(x[:, 0].mean(0), entry.mean([p])[0], rtol=0, atol=0.01)
    assert entry.mean([p]).shape == (3, 1, 1)


X, R, Z = torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2, 3, 5), torch.zeros(2, 2)
REFUSED = {
    "clip": (lambda: vae_fast.elbo(X, R, Z, Z, likelihood="categorical", clip="clamp"), ["clip='clamp'", "likelihood='categorical'"]),
    "pair": (lambda: vae_fast.elbo(X, (R, R), Z, Z, likelihood="categorical"), ["recon", "one tensor", "got 2"]),
    "event_dim of counts": (
        lambda: vae_fast.elbo(R, R, Z, Z, likelihood="multinomial", event_dim=2),
        ["event_dim=2", "likelihood='multinomial'"],
    ),
    "event_dim of pixels": (
        lambda: vae_fast.elbo(R, R, Z, Z, likelihood="discretized_logistic_mixture"),
        ["event_dim=1", "expected 3"],
    ),
    "grey": (
        lambda: vae_fast.elbo(
            torch.zeros(2, 1, 4, 4), torch.zeros(2, 20, 4, 4), Z, Z, likelihood="discretized_logistic_mixture", event_dim=3
        ),
        ["x has shape (2, 1, 4, 4)", "(*batch, 3, H, W)"],
    ),
    "no scale": (
        lambda: vae_fast.elbo(Z, Z, Z, Z, likelihood="discretized_logistic"),
        ["recon", "(loc, log_scale) pair", "got a Tensor"],
    ),
    "donated": (
        lambda: vae_fast.elbo_loss(X, R, Z, Z, likelihood="categorical", donate_recon=True),
        ["donate_recon=True", "a sum over elements"],
    ),
    "values": (
        lambda: vae_fast.elbo(X + 7, R, Z, Z, likelihood="categorical", check_data=True),
        ["x holds 7", "0 to 4"],
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused(case, backend):
    assert_refused(case[0], ValueError, case[1])

"""The distributions of counts beyond what torch's own are: by mean and dispersion, zero-inflated, at the extremes."""

import math
import pickle

import pytest
import torch
import torch.distributions as T

from vae_fast import distributions as D


def formula(x, mu, theta, zi_logits):
    """The zero-inflated negative binomial in the words of torch.distributions, float64."""
    counts = T.NegativeBinomial(theta, logits=mu.log() - theta.log()).log_prob(x) - torch.nn.functional.softplus(zi_logits)
    zero = torch.where(x == 0, -torch.nn.functional.softplus(-zi_logits), -math.inf)
    return torch.logaddexp(counts, zero)


def drawn(grad=False):
    made = (torch.rand(4, 3).double() * 5 + 0.1, torch.rand(3).double() * 3 + 0.1, torch.randn(4, 3).double())
    return [t.requires_grad_(grad) for t in made]


@pytest.mark.parametrize("given", ["mean", "logits"])
def test_zero_inflated_against_the_formula(given, backend):
    mu, theta, zi_logits = drawn(grad=True)
    if given == "mean":
        d = D.ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=zi_logits)
    else:
        d = D.ZeroInflatedNegativeBinomial(theta, logits=mu.log() - theta.log(), zi_logits=zi_logits)
    x = torch.poisson(torch.rand(5, 4, 3) * 3).double()
    out, wanted = d.log_prob(x), formula(x, mu, theta, zi_logits)
    torch.testing.assert_close(out, wanted, rtol=1e-9, atol=1e-9)
    for a, b in zip(*(torch.autograd.grad(t.sum(), [mu, theta, zi_logits]) for t in (out, wanted)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(D.Independent(d, 1).log_prob(x), wanted.sum(-1), rtol=1e-9, atol=1e-9)


def test_zero_inflated_moments_and_draws():
    mu, theta, zi_logits = drawn()
    d = D.ZeroInflatedNegativeBinomial(mu=mu, theta=theta + 2.0, zi_logits=zi_logits)
    n = 40_000
    x = d.sample((n,))
    assert x.shape == (n, 4, 3)
    assert ((x.mean(0) - d.mean).abs() / (d.variance / n).sqrt()).max() < 4.5
    torch.testing.assert_close(x.var(0), d.variance, rtol=0.2, atol=0.0)
    share = (x == 0).double().mean(0)
    torch.testing.assert_close(share, d.log_prob(torch.zeros(4, 3).double()).exp(), rtol=0.0, atol=0.02)


@pytest.mark.parametrize("kind", [D.NegativeBinomial, D.ZeroInflatedNegativeBinomial])
def test_the_class_pattern(kind):
    mu, theta, zi_logits = drawn()
    more = {"zi_logits": zi_logits} if kind is D.ZeroInflatedNegativeBinomial else {}
    more["validate_args"] = True  # the default is no longer, once torch.compile was imported
    d = kind(mu=mu, theta=theta, scale=mu / mu.sum(-1, keepdim=True), **more)
    assert isinstance(d, T.NegativeBinomial)
    assert (d.batch_shape, d.event_shape, d.has_rsample) == ((4, 3), (), False)
    x = torch.poisson(mu)
    wide = d.expand((2, 4, 3))
    assert type(wide) is kind
    torch.testing.assert_close(wide.log_prob(x), d.log_prob(x).expand(2, 4, 3))
    assert wide.sample((6,)).shape == (6, 2, 4, 3)
    assert torch.equal(pickle.loads(pickle.dumps(d)).log_prob(x), d.log_prob(x))
    assert d.get_normalized("mu") is d.mu
    assert wide.get_normalized("scale").shape == (2, 4, 3)
    with pytest.raises(ValueError, match="key='rate': expected 'mu' or 'scale'"):
        d.get_normalized("rate")
    with pytest.raises(ValueError, match="Expected parameter theta"):
        kind(mu=mu, theta=-theta, **more)
    with pytest.raises(ValueError, match="to be within the support"):
        d.log_prob(x + 0.5)


@pytest.mark.parametrize("given", [{}, {"mu": 1.0}, {"theta": 1.0}, {"mu": 1.0, "theta": 1.0, "probs": torch.tensor(0.5)}])
def test_parameters_of_neither_or_both_sets_are_refused(given):
    with pytest.raises(ValueError, match="mu, theta: expected both of them, or total_count with probs or logits"):
        D.NegativeBinomial(**given)
    with pytest.raises(ValueError, match="total_count=None: expected a number or a tensor"):
        D.NegativeBinomial(probs=torch.tensor(0.5))


def test_both_names_of_the_parameters():
    mu, theta, _ = drawn()
    d, twin = D.NegativeBinomial(mu=mu, theta=theta), T.NegativeBinomial(theta, logits=mu.log() - theta.log())
    for name in ("total_count", "logits", "probs", "mean", "variance", "mode"):
        torch.testing.assert_close(getattr(d, name), getattr(twin, name).expand(4, 3))
    d = D.NegativeBinomial(theta, logits=mu.log() - theta.log())
    torch.testing.assert_close(d.mu, mu)
    torch.testing.assert_close(d.theta, theta.expand(4, 3))


def test_a_mean_out_of_range_whose_logit_is_not(backend):
    d = D.NegativeBinomial(torch.tensor(2.0), logits=torch.tensor([50.0, -100.0]))
    x = torch.tensor([1e6, 0.0])
    wide = T.NegativeBinomial(torch.tensor(2.0).double(), logits=d.logits.double())
    torch.testing.assert_close(d.log_prob(x).double(), wide.log_prob(x.double()), rtol=1e-6, atol=1e-6)
    before = d.log_prob(x)
    assert d.mean[1] > 0
    assert torch.equal(d.log_prob(x), before)  # whatever was asked for meanwhile


def test_large_counts_and_dispersions_keep_their_precision(backend):
    x, mu = torch.tensor([0.0, 3.0, 1e6]), torch.tensor([2.0, 2.0, 1e6])
    for theta in (1e-6, 1e8):
        wide = T.NegativeBinomial(torch.tensor(theta).double(), logits=mu.double().log() - math.log(theta)).log_prob(x.double())
        tolerance = 1e-6 if theta == 1e-6 else 1e-4  # of torch's own formula in float64, where log-gammas of 1e8 cancel
        torch.testing.assert_close(D.NegativeBinomial(mu=mu, theta=theta).log_prob(x).double(), wide, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_integer_counts(dtype, backend):
    x = torch.tensor([0, 1, 7], dtype=dtype)
    for d in (D.Poisson(2.0), D.NegativeBinomial(mu=2.0, theta=3.0), D.ZeroInflatedNegativeBinomial(mu=2.0, theta=3.0, zi_logits=0.0)):
        assert torch.equal(d.log_prob(x), d.log_prob(x.float()))

"""vae_fast.distributions.DiscretizedLogistic, which torch does not have: against a logistic distribution's own bins."""

import copy
import math
import pickle

import pytest
import torch
import torch.distributions as T

from vae_fast import distributions as D


def logistic(loc, scale):
    return T.TransformedDistribution(
        T.Uniform(torch.zeros_like(loc), torch.ones_like(loc)), [T.SigmoidTransform().inv, T.AffineTransform(loc, scale)]
    )


def probabilities(loc, scale, bits):
    """Of every level, ``(2 ** bits, *batch)``: differences of the distribution function at the bins' ends."""
    highest = 2**bits - 1
    ends = (2.0 * torch.arange(highest).double() + 1.0) / highest - 1.0
    below = logistic(loc, scale).cdf(ends.reshape(-1, *[1] * loc.ndim))
    none, all_of_it = torch.zeros_like(below[:1]), torch.ones_like(below[:1])
    return torch.cat((below, all_of_it)) - torch.cat((none, below))


def drawn(*shape):
    return (torch.randn(shape).double() * 0.5).requires_grad_(), (torch.rand(shape).double() * 0.3 + 0.05).requires_grad_()


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_log_prob_moments_and_gradients_against_the_bins(bits, backend):
    loc, scale = drawn(4, 3)
    d, p = D.DiscretizedLogistic(loc, scale, bits), probabilities(loc, scale, bits)
    x = d.enumerate_support()
    assert x.shape == (2**bits, 4, 3)
    torch.testing.assert_close(x[:, 0, 0], torch.arange(2**bits).double() / (2**bits - 1))
    torch.testing.assert_close(d.log_prob(x).exp(), p, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(d.mean, (p * x).sum(0))
    torch.testing.assert_close(d.variance, (p * x.square()).sum(0) - (p * x).sum(0).square(), rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(d.entropy(), -torch.special.xlogy(p, p).sum(0), rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(d.cdf(x), p.cumsum(0), rtol=1e-9, atol=1e-12)
    mine, wanted = (torch.autograd.grad(q.square().sum(), [loc, scale]) for q in (d.log_prob(x).exp(), p))
    torch.testing.assert_close(mine, wanted, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(D.Independent(d, 1).log_prob(x).detach(), p.log().sum(-1).detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 3.0])
def test_entropy_and_draws_at_both_ends_of_the_scale(scale):
    d = D.DiscretizedLogistic(torch.tensor([-2.0, 0.1, 2.0]).double(), scale)
    p = probabilities(d.loc, d.scale, 8)
    torch.testing.assert_close(d.entropy(), -torch.special.xlogy(p, p).sum(0), rtol=1e-5, atol=1e-6)
    n = 40_000
    x = d.sample((n,))
    assert x.shape == (n, 3)
    assert bool(d.support.check(x).all())
    assert bool(((x.mean(0) - d.mean).abs() <= 4.5 * (d.variance / n).sqrt() + 1e-12).all())
    torch.testing.assert_close(x.var(0), d.variance, rtol=0.1, atol=1e-12)


def test_the_class_pattern():
    loc, scale = (t.detach().float() for t in drawn(4, 3))
    d = D.DiscretizedLogistic(loc, scale[0], 4, validate_args=True)
    assert (d.batch_shape, d.event_shape, d.has_rsample, d.has_enumerate_support) == ((4, 3), (), False, True)
    assert (repr(d.support), d.support.is_discrete) == ("Levels(0, 1 / 15, ..., 1)", True)
    assert d.enumerate_support(expand=False).shape == (16, 1, 1)
    assert not d.sample().requires_grad
    x = d.sample()
    wide = d.expand((2, 4, 3))
    assert (type(wide), wide.bits) == (D.DiscretizedLogistic, 4)
    torch.testing.assert_close(wide.log_prob(x), d.log_prob(x).expand(2, 4, 3))
    assert wide.sample((6,)).shape == (6, 2, 4, 3)
    for again in (copy.deepcopy(d), pickle.loads(pickle.dumps(d))):
        assert torch.equal(again.log_prob(x), d.log_prob(x))
    assert D.DiscretizedLogistic(0.0, 1).log_prob(torch.tensor(1.0)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_levels_in_every_dtype_are_levels(dtype, backend):
    d = D.DiscretizedLogistic(torch.zeros(()), 0.3, validate_args=True)
    x = (torch.arange(256) / 255.0).to(dtype)
    assert d.log_prob(x).shape == (256,)
    wide = D.DiscretizedLogistic(torch.zeros(()).double(), 0.3, validate_args=False).log_prob(x.double())
    torch.testing.assert_close(d.log_prob(x).double(), wide, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [0, 9, 8.0, True, "8"])
def test_bits_that_are_none(bits):
    with pytest.raises(ValueError, match=r"bits=.*: expected 1 to 8"):
        D.DiscretizedLogistic(0.0, 1.0, bits)


@pytest.mark.parametrize("value", [128, 0.5, 1.0 + 1.0 / 255, -1.0 / 255, math.nan])
def test_values_that_are_no_levels(value):
    d = D.DiscretizedLogistic(0.0, 1.0, validate_args=True)
    for look in (d.log_prob, d.cdf):
        with pytest.raises(ValueError, match="to be within the support"):
            look(torch.tensor(value))
    with pytest.raises(ValueError, match="Expected parameter scale"):
        D.DiscretizedLogistic(0.0, -1.0, validate_args=True)

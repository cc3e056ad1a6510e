"""Second derivatives where two arguments are equal: integer data at a whole prediction, a posterior that starts at its prior.

There a formula may drop a factor (any scale standardises a difference of zero) that the value and the gradient do not need.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import vae_fast
from vae_fast._scales import SCALES, UNIT_SCALE

SHAPE = (2, 3)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape or SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scale_of(scale: str, seed: int) -> Tensor:
    t = 0.7 * drawn(seed)
    return t.exp() if scale in ("std", "var") else t


@pytest.fixture
def check(backend: str, device: str) -> Callable[..., None]:
    """Both derivatives against differences, of leaves of their own: the same numbers, not the same tensor."""

    def checked(f: Callable[..., object], *inputs: Tensor) -> None:
        leaves = tuple(t.to(device, copy=True).requires_grad_() for t in inputs)
        assert gradcheck(f, leaves)
        assert gradgradcheck(f, leaves)

    return checked


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["gaussian_log_prob", "log_normal_log_prob", "student_t_log_prob"])
def test_data_at_the_location(check: Callable[..., None], name: str, scale: str) -> None:
    mu, s = drawn(1), scale_of(scale, 2)
    if name == "log_normal_log_prob":  # 0 is the logarithm that one takes exactly
        mu = torch.zeros_like(mu)
    x = torch.ones_like(mu) if name == "log_normal_log_prob" else mu
    df = [torch.tensor(3.0, dtype=torch.float64)] if name == "student_t_log_prob" else []
    check(lambda x, *rest: getattr(vae_fast, name)(x, *rest, scale=scale), x, *df, mu, s)


@pytest.mark.parametrize("scale", SCALES)
def test_a_posterior_at_its_prior(check: Callable[..., None], scale: str) -> None:
    mu, s, other = drawn(1), scale_of(scale, 2), scale_of(scale, 3)
    unit = torch.full(SHAPE, UNIT_SCALE[scale], dtype=torch.float64)

    def kl(*t: Tensor) -> Tensor:
        return vae_fast.gaussian_kl(*t, scale=scale)

    def loss(recon: Tensor, *t: Tensor) -> Tensor:
        x = torch.full_like(recon, 0.3, requires_grad=False)
        return vae_fast.elbo_loss(recon, x, *t[:2], prior_mu=t[2], prior_logvar=t[3], scale=scale)

    check(kl, torch.zeros(SHAPE, dtype=torch.float64), unit)
    check(kl, mu, s, mu, other)
    check(kl, mu, s, mu, s)
    check(loss, drawn(4), mu, s, mu, other)


@pytest.mark.parametrize("estimator", ["mws", "mss"])
def test_samples_at_their_means(check: Callable[..., None], estimator: str) -> None:
    z, logvar = drawn(1, 5, 2), drawn(2, 5, 2)
    check(lambda *t: vae_fast.total_correlation(*t, dataset_size=100, estimator=estimator), z, z, logvar)
    check(vae_fast.aggregate_log_prob, z, z, logvar)


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_two_sets_of_equal_points(check: Callable[..., None], kernel: str) -> None:
    z = drawn(1, 5, 2)
    check(lambda *t: vae_fast.mmd(*t, kernel=kernel), z, z)


@pytest.mark.parametrize("covariance_type", ["diag", "spherical"])
@pytest.mark.parametrize("factorized", [False, True])
def test_rows_at_means(check: Callable[..., None], covariance_type: str, factorized: bool) -> None:
    means, scale = drawn(1, 4, 3), drawn(2, 4, 3) if covariance_type == "diag" else drawn(2, 4)
    check(
        lambda *t: vae_fast.mixture_log_prob(*t, covariance_type=covariance_type, factorized=factorized),
        means[:2],
        drawn(3, 4),
        means,
        scale,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", ["logvar", "log_std", "softplus"])
def test_at_the_mean_no_scale_is_too_small(device: str, dtype: torch.dtype, scale: str) -> None:
    """1 / variance is infinite there; neither the value nor the gradient of the mean takes part in it, the second derivative is held."""
    low = -2.0 * math.log(torch.finfo(dtype).max)
    x = torch.ones(3, dtype=dtype, device=device, requires_grad=True)
    out = vae_fast.gaussian_log_prob(x, torch.ones_like(x), torch.full_like(x, low), scale=scale)
    (first,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert out.isfinite().all() and (first == 0).all()
    assert (second < -torch.finfo(dtype).max / 10).all()

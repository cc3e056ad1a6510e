"""Faults that random calls found, each as the case it was."""

import functools
import math

import numpy
import pytest
import torch
from oracle import assert_refused, needs_kernels
from test_aggregate import formula, posteriors

import vae_fast


@pytest.mark.parametrize("size", [-800.0, 800.0, -1e4, 30.0, 0.0])
def test_second_derivatives_of_far_logits(size, device, backend):
    logits = torch.full((1, 3), size, dtype=torch.float64, device=device, requires_grad=True)
    x = torch.full((1, 3), 0.25, dtype=torch.float64, device=device)
    [first] = torch.autograd.grad(vae_fast.bernoulli_log_prob(x, logits).sum(), logits, create_graph=True)
    [second] = torch.autograd.grad(first.sum(), logits)
    p = 1 / (1 + math.exp(min(-size, 700.0)))
    torch.testing.assert_close(second, torch.full_like(second, -p * (1 - p)), rtol=1e-12, atol=1e-15)


def test_second_derivatives_of_levels_far_from_a_narrow_bin(device, backend):
    loc = torch.tensor([-0.9, 0.9, 0.3], dtype=torch.float64, device=device, requires_grad=True)
    x = torch.tensor([1.0, 0.0, 0.65], dtype=torch.float64, device=device)
    value = vae_fast.discretized_logistic_log_prob(x, loc, torch.full_like(loc, -7.0), event_dim=0)
    [first] = torch.autograd.grad(value.sum(), loc, create_graph=True)
    [second] = torch.autograd.grad(first.sum(), loc)
    assert second.isfinite().all()
    assert second[:2].abs().max() < 1e-12  # linear there


def test_mixed_precision_of_a_mixture_of_counts_is_the_widest(device, backend):
    x = torch.tensor([[3, 0, 40]], device=device)
    narrow = [torch.tensor([[v, 2 * v, 5.0]], device=device) for v in (1.7, 0.3, 2.9, 11.0)]
    logits = torch.tensor([[0.3, -1.0, 2.0]], device=device)
    want = vae_fast.negative_binomial_mixture_log_prob(x, *(t.double() for t in narrow), logits.double())
    for at in range(5):
        given = [*narrow, logits]
        given[at] = given[at].double()
        torch.testing.assert_close(vae_fast.negative_binomial_mixture_log_prob(x, *given), want, rtol=1e-13, atol=0.0)


def test_mixed_precision_of_total_correlation_is_the_widest(device, backend):
    z, mu, logvar = (t.float() for t in posteriors(9, 3, device=device))
    want = formula(z.double(), mu.double(), logvar.double(), 100, "mws", "beta-tcvae")
    for given in ((z.double(), mu, logvar), (z, mu.double(), logvar), (z, mu, logvar.double())):
        found = torch.stack(vae_fast.total_correlation(*given, 100, reduction="none"))
        torch.testing.assert_close(found, want, rtol=1e-11, atol=1e-11)


def test_half_gradients_of_total_correlation_are_rounded_once(device, backend):
    """They are sums of four, of which two may be out of a half's range and cancel."""
    halves = [t.half().requires_grad_() for t in posteriors(64, 3, device=device)]
    wide = [t.detach().double().requires_grad_() for t in halves]
    factor = 2.0**15
    for tensors in (halves, wide):
        (factor * sum(t.sum() for t in vae_fast.total_correlation(*tensors, 100, reduction="none"))).backward()
    for t, w in zip(halves, wide, strict=True):
        inside = w.grad.abs() < 65000
        assert inside.any()
        torch.testing.assert_close(t.grad[inside].double(), w.grad[inside], rtol=1.1e-3, atol=1e-3 * w.grad.abs().max().item())


def test_half_gradients_of_the_aggregate_posterior_reach_as_far_as_halves(device, backend):
    """The gradient of the log standard deviation is twice that of the log variance."""
    z, mu, logvar = (t.half() for t in posteriors(8, 2, device=device))
    logvar.requires_grad_()
    found = vae_fast.aggregate_log_prob(z, mu, logvar)
    [unit] = torch.autograd.grad(found.double().sum(), logvar, retain_graph=True)
    factor = 5e4 / unit.abs().max().item()
    [grad] = torch.autograd.grad(found.sum(), logvar, torch.tensor(factor, device=device))
    torch.testing.assert_close(grad.double(), unit.double() * factor, rtol=2e-3, atol=1.0)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_counts_over_equal_logits_out_of_the_reach_of_a_sum(sparse, device, backend):
    """Beside 3e38 the logarithm of a sum of five thousand exponentials is nothing; beside their differences it is all."""
    x = torch.zeros(1, 5000, device=device)
    x[0, :3] = torch.tensor([2.0, 1.0, 7.0], device=device)
    found = vae_fast.multinomial_log_prob(x.to_sparse_csr() if sparse else x, torch.full((1, 5000), 3e38, device=device))
    torch.testing.assert_close(found, torch.tensor([-10 * math.log(5000)], device=device), rtol=1e-6, atol=0.0)


def test_a_scale_that_is_an_array_is_refused_by_name_beside_a_prior(backend):
    t = torch.zeros(2, 3)
    for f in (vae_fast.gaussian_kl, functools.partial(vae_fast.elbo_loss, t, t)):
        assert_refused(lambda: f(t, t, prior_mu=t, scale=numpy.array([1.0, 2.0])), ValueError, ["scale"])  # noqa: B023


@needs_kernels
def test_the_slope_of_a_laplace_next_to_its_location(device):
    """The difference, times 1 / b, is below the least number; its sign is not 0."""
    x, scale = torch.full((2,), 1e-45, device=device), torch.full((2,), 20.0, device=device)
    loc = torch.tensor([0.0, 6e-45], device=device, requires_grad=True)
    vae_fast.laplace_log_prob(x, loc, scale, scale="std").backward()
    torch.testing.assert_close(loc.grad, torch.tensor([0.05, -0.05], device=device))


@pytest.mark.parametrize("factorized", [False, True])
def test_a_component_of_no_width_costs_the_others_no_digit(factorized, device, backend):
    """Log std -1e30: the other component's constant was measured from that one's, and 1.5 nats of it were lost."""
    x, means = torch.full((1, 1), 0.9674942, device=device), torch.tensor([[0.9497070], [0.5214844]], device=device)
    logits, log_std = torch.tensor([80.0, -1.3], device=device), torch.tensor([10.0, -1e30], device=device)
    value = vae_fast.mixture_log_prob(x, logits, means, log_std, covariance_type="spherical", factorized=factorized)
    assert value.item() == pytest.approx(-10.0 - 0.5 * math.log(2.0 * math.pi), rel=1e-6)


@pytest.mark.parametrize("at", [0.0, 1e15, 1e30])
def test_a_square_out_of_range_spoils_no_gradient_of_a_factorized_mixture(at, device, backend):
    """The weight 0 of a component whose distance has no square in float32 was multiplied by that square."""
    x, means = torch.full((3, 2), at, device=device), torch.tensor([[at, at], [1e15 - at, 1e15 - at]], device=device).requires_grad_()
    logits = torch.tensor([-4.0, 0.1], device=device, requires_grad=True)
    log_std = torch.tensor([-10.0, -10.0], device=device, requires_grad=True)
    vae_fast.mixture_log_prob(x, logits, means, log_std, covariance_type="spherical", factorized=True).sum().backward()
    torch.testing.assert_close(log_std.grad, torch.tensor([-6.0, 0.0], device=device))
    assert not means.grad.any()
    assert logits.grad.isfinite().all()


def test_a_bin_whose_log_probability_is_out_of_range_is_impossible(device, backend):
    """It was -3.4e38, the largest float32, in place of -5e49."""
    far = torch.full((2,), 1e15, device=device)
    value = vae_fast.discretized_logistic_log_prob(torch.tensor([0.2, 0.4], device=device), far, torch.full_like(far, -80.0), event_dim=0)
    assert (value == -math.inf).all()


@pytest.mark.parametrize("free_bits", [0.25, torch.tensor(0.25)], ids=["a number", "a tensor"])
def test_a_half_gradient_of_a_sample_and_its_kl_is_rounded_once(free_bits, device, backend):
    """Two infinities of opposite signs were added where the sum is out of the halves' range but known, too."""
    mu = torch.full((1, 4), 1.3, dtype=torch.float16, device=device, requires_grad=True)
    z, kl = vae_fast.reparameterize_with_kl(mu, torch.zeros_like(mu), num_samples=3, noise=torch.ones(3, 1, 4).to(mu), free_bits=free_bits)
    torch.autograd.backward([z, kl], [torch.full_like(z, 6e4), torch.full_like(kl, -(2.0**24))])
    assert (mu.grad == -math.inf).all()  # 3 * 6e4 - 1.3 * 2^24


@pytest.mark.parametrize("log_scale", [-3.0, 20.0, 300.0, 1e4])
def test_a_narrow_bin_has_the_logarithm_of_its_width_at_any_scale(log_scale, device, backend):
    """The formulas of PyTorch held the scale where its inverse is a number, and stayed at -696 beyond."""
    loc = torch.zeros(3, dtype=torch.float64, device=device, requires_grad=True)
    scale = torch.full_like(loc, log_scale, requires_grad=True)
    x = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64, device=device)
    value = vae_fast.discretized_logistic_log_prob(x, loc, scale, event_dim=0)
    [first] = torch.autograd.grad(value.sum(), scale)
    if log_scale < 0:
        inverse, y = math.exp(-log_scale), 2.0 * x - 1.0
        want = (torch.sigmoid((y + 1 / 255) * inverse) - torch.sigmoid((y - 1 / 255) * inverse)).log()
    else:  # log of the density 1 / (4 s) at the middle of a bin of width 2 / 255
        want = torch.full_like(x, math.log(2.0 / 255.0) - math.log(4.0) - log_scale)
        torch.testing.assert_close(first, torch.full_like(first, -1.0), rtol=1e-7, atol=0.0)
    torch.testing.assert_close(value.detach(), want, rtol=1e-12, atol=1e-8)


@pytest.mark.parametrize("clip", ["bce", "add"])
@pytest.mark.parametrize("logit", [-41.6, -24.0, 3.0, 24.0, 41.6, 60.0])
def test_gradients_of_far_logits_through_every_route(clip, logit, device, backend):
    """p (1 - p), of a p that rounds to 1, was 0 or off by a part in 10^5 where torch.func differentiates the formula."""
    x = torch.tensor([0.0, 0.25, 0.75], dtype=torch.float64, device=device)
    small, large = math.exp(-abs(logit)) / (1 + math.exp(-abs(logit))), 1 / (1 + math.exp(-abs(logit)))
    p, q = (small, large) if logit < 0 else (large, small)
    of_bce = (x - p) * 1e12 * p * q if p * q < 1e-12 else x * q - (1 - x) * p
    want = of_bce if clip == "bce" else p * q * (x / (p + 1e-9) - (1 - x) / (q + 1e-9))

    def total(logits):
        return vae_fast.bernoulli_log_prob(x, logits, clip=clip, eps=1e-9).sum()

    logits = torch.full_like(x, logit, requires_grad=True)
    torch.testing.assert_close(torch.autograd.grad(total(logits), logits)[0], want, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(torch.func.grad(total)(logits.detach()), want, rtol=1e-9, atol=0.0)


@needs_kernels
@pytest.mark.parametrize("covariance", ["tied", "full"])
def test_squares_whose_sum_is_out_of_range_leave_gradients_that_are_not(covariance):
    """Of 400 rows 2e19 standard deviations away: their squares' sum was infinite, and its product with factors of both signs NaN."""
    torch.manual_seed(0)
    k, d = 3, 7
    x = 1e-6 * torch.randn(400, d)
    means = torch.where(torch.rand(k, d) < 0.5, 1.0, 1e4)
    scale = torch.eye(d) + 0.3 * torch.randn(d, d) if covariance == "tied" else torch.eye(d) + 0.3 * torch.randn(k, d, d)
    single = [t.clone().requires_grad_() for t in (x, torch.randn(k), means, 5e14 * scale.triu())]
    wide = [t.detach().double().requires_grad_() for t in single]
    for leaves in (single, wide):
        value = vae_fast.mixture_log_prob(*leaves, covariance_type=covariance)
        assert value.isfinite().all()
        (value * 3.0).sum().backward()
    for t, w in zip(single, wide, strict=True):
        torch.testing.assert_close(t.grad.double(), w.grad, rtol=1e-5, atol=1e-5 * w.grad.abs().max().item())
    found, want = (vae_fast.mixture_statistics(*(t.detach() for t in leaves), covariance_type=covariance) for leaves in (single, wide))
    for t, w in zip(found, want, strict=True):
        torch.testing.assert_close(t.double(), w, rtol=1e-5, atol=1e-5 * w.abs().max().item())


@pytest.mark.parametrize("of", ["bernoulli", "multinomial"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_row_of_h_that_all_data_share_has_one_gradient_rounded_once(of, reduction, device, backend):
    """It was multiplied out for every row of the data: products of 4,000 terms that nearly cancel, 20 times the error of the plain form."""
    torch.manual_seed(0)
    x, h = torch.rand(4000, 5, device=device).round() + 0.0, torch.randn(1, 7, device=device)
    weight, bias = torch.randn(5, 7, device=device), torch.randn(5, device=device)
    f = getattr(vae_fast, f"linear_{of}_log_prob")
    single = [t.clone().requires_grad_() for t in (h, weight, bias)]
    wide = [t.double().requires_grad_() for t in (h, weight, bias)]
    for leaves in (single, wide):
        value = f(x, *leaves, reduction=reduction)
        assert value.dtype == leaves[0].dtype
        value.backward()
    torch.testing.assert_close(value, f(x, *wide, reduction="none").sum() / (1 if reduction == "sum" else len(x)))
    for t, w in zip(single, wide, strict=True):
        assert (t.grad.double() - w.grad).abs().max() <= 3e-7 * w.grad.abs().max()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_counts_that_are_integers_under_importance_weights(dtype, device, backend):
    """The ELBO took them, the importance-weighted loss refused all but bytes."""
    x = torch.tensor([[0, 3, 17], [1, 0, 255]], device=device)
    z, mu, log_rate = (torch.full(shape, 0.3, device=device) for shape in ((4, 2, 5), (2, 5), (4, 2, 3)))
    given = (log_rate, z, mu, mu)
    assert vae_fast.iwae_loss(x.to(dtype), *given, likelihood="poisson") == vae_fast.iwae_loss(x.float(), *given, likelihood="poisson")


@pytest.mark.parametrize("of", ["a", "weights"])
def test_nothing_to_sum_has_gradients_that_are_as_empty(of, device, backend):
    given = {n: torch.zeros(0, 3, device=device, requires_grad=n == of) for n in ("a", "weights")}
    out = vae_fast.logsumexp(given["a"], 0, given["weights"])
    assert (out == -math.inf).all()
    out.sum().backward()
    assert given[of].grad.shape == (0, 3)

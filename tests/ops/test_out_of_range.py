"""Sums, products and differences whose parts are out of range where the result is not, and terms that count for nothing."""

import math

import pytest
import torch
from oracle import leaves, value_and_grads

import vae_fast


def truth(got, want, rtol=2e-6):
    torch.testing.assert_close(got.double(), want.double(), rtol=rtol, atol=1e-37)


# --- weights of a log-sum-exp -----------------------------------------------------------------------------------------

WEIGHTS = {
    "huge": [1e38] * 40,
    "tiny": [1e-45, 1e-40, 1e-38, 1e-20] * 10,
    "of all sizes": [1e-45, 1e38, 1.0, 0.0] * 10,
    "ordinary and one huge": [1.0] * 39 + [3e38],
}


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("spread", [0.5, 40.0])
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_of_any_size(weights, spread, dim, device, backend):
    torch.manual_seed(0)
    w = torch.tensor(weights, device=device).view(-1, 1).expand(-1, 33)
    a = spread * torch.randn(40, 33, device=device)
    a, w = (a, w) if dim == 0 else (a.T.contiguous(), w.T)

    def plain(a, w):
        return torch.logsumexp(a + w.log(), dim)

    got, grads = value_and_grads(lambda a, w: vae_fast.logsumexp(a, dim, w), [a, w])
    want, (of_a, _) = value_and_grads(plain, [a.double(), w.double()])
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=8e-6)  # a + log w, of size 100, is rounded in the plain formula too
    torch.testing.assert_close(grads[0].double(), of_a, rtol=4e-5, atol=1e-25)  # of exponents of size 100, in float32
    assert grads[0].sum().item() == pytest.approx(33.0, rel=4e-5)
    assert not grads[1].isnan().any()


# --- samples ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "t"), [("logvar", 178.0), ("logvar", 200.0), ("log_std", 89.0), ("log_std", 100.0)])
def test_small_noise_times_a_std_out_of_range(scale, t, device, backend):
    log_std = 0.5 * t if scale == "logvar" else t
    noise = torch.tensor([0.0, 1.0, -0.5, 1e-3], device=device) * math.exp(88.0 - log_std)
    mu, s = torch.tensor([1.0, -1e37, 0.0, 3.0], device=device), torch.full((4,), t, device=device)
    got, (of_mu, of_s) = value_and_grads(lambda m, s: vae_fast.reparameterize(m, s, scale=scale, noise=noise), [mu, s])
    product = noise.double() * math.exp(log_std)
    truth(got, mu.double() + product, 2e-5)  # half a unit in the last place of an exponent of 100 is 4e-6 of its power
    truth(of_mu, torch.ones_like(product))
    truth(of_s, product * (0.5 if scale == "logvar" else 1.0), 2e-5)


@pytest.mark.parametrize("scale", ["logvar", "log_std", "std"])
def test_a_product_out_of_range_that_the_mean_brings_back(scale, device, backend):
    s = {"logvar": 176.0, "log_std": 88.0, "std": math.exp(88.0)}[scale]
    mu, noise = torch.full((20,), 1e38, device=device), torch.full((20,), -2.5, device=device)
    got = vae_fast.reparameterize(mu, torch.full((20,), s, device=device), scale=scale, noise=noise)
    truth(got, 1e38 - 2.5 * math.exp(88.0) * torch.ones_like(got, dtype=torch.float64), 2e-5)


# --- terms that count for nothing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("prior", [False, True], ids=["standard", "prior"])
@pytest.mark.parametrize("reduction", ["elbo", "none", "mean"])
def test_beta_of_zero_leaves_nothing_of_an_infinite_kl(reduction, prior, tensor, device, backend):
    """0 times a KL that is merely out of range is 0, as its true value is a number; so a warm-up may begin with beta = 0."""
    torch.manual_seed(0)
    x, recon = torch.rand(5, 7, device=device), torch.randn(5, 7, device=device)
    mu, logvar = torch.randn(5, 3, device=device), torch.randn(5, 3, device=device)
    mu[0, 0], logvar[1, 1], logvar[2, 2] = 3e38, 90.0, 400.0
    inputs = leaves([recon, mu, logvar])
    latent = {"prior_mu": torch.ones(3, device=device), "prior_logvar": torch.full((3,), -1.0, device=device)} if prior else {}
    latent["beta"] = torch.zeros((), device=device) if tensor else 0.0

    def rows(recon, mu, logvar):
        return vae_fast.elbo(x, recon, mu, logvar, **latent)

    if reduction != "elbo":

        def rows(recon, mu, logvar):
            return -vae_fast.elbo_loss(x, recon, mu, logvar, reduction=reduction, **latent)

    want = vae_fast.bernoulli_log_prob(x, recon)
    got = rows(*inputs)
    torch.testing.assert_close(got, want.mean() if reduction == "mean" else want)
    got.sum().backward()
    assert inputs[0].grad.abs().sum() > 0
    assert (inputs[1].grad == 0).all()
    assert (inputs[2].grad == 0).all()


@pytest.mark.parametrize("name", ["mu", "logvar"])
def test_beta_of_zero_does_not_hide_not_a_number(name, device, backend):
    latent = {"mu": torch.zeros(3, 2, device=device), "logvar": torch.zeros(3, 2, device=device)}
    latent[name][1, 1] = math.nan
    got = vae_fast.elbo(torch.rand(3, 4, device=device), torch.zeros(3, 4, device=device), **latent, beta=0.0)
    assert got.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("likelihood", ["kl", "density"])
def test_an_upstream_gradient_of_zero_stops_a_derivative_out_of_range(likelihood, device, backend):
    x, s = torch.zeros(4, 3, device=device), torch.full((4, 3), 90.0, device=device)
    x[0], s[1:] = 1e30, 0.0

    def f(x, s):
        return vae_fast.gaussian_kl(x, s) if likelihood == "kl" else vae_fast.gaussian_log_prob(torch.zeros_like(x), x, -s)

    upstream = torch.tensor([0.0, 1.0, 1.0, 1.0], device=device)
    _, grads = value_and_grads(f, [x, s], upstream)
    for g in grads:
        assert g.isfinite().all()
        assert (g[0] == 0).all()


def test_a_sample_without_weight_has_no_gradient(device, backend):
    torch.manual_seed(0)
    x, recon, z = torch.rand(4, 7, device=device), torch.randn(3, 4, 7, device=device), torch.randn(3, 4, 2, device=device)
    mu, logvar = torch.randn(2, 4, 2, device=device)
    z[0] = 1e25
    _, grads = value_and_grads(lambda *t: vae_fast.iwae_loss(x, *t, reduction="none"), [recon, z, mu, logvar])
    assert all(g.isfinite().all() for g in grads)
    assert (grads[1][0] == 0).all()


@pytest.mark.parametrize("covariance", ["diag", "spherical"])
def test_sums_of_a_component_as_wide_as_no_number_is(covariance, device, backend):
    """Its density is 0 everywhere, and so are its sums."""
    scale = torch.tensor([0.8, 3e38], device=device)
    x, means = torch.tensor([[2.5], [1.5]], device=device), torch.zeros(2, 1, device=device)
    scale = scale if covariance == "spherical" else scale.view(2, 1)
    got = vae_fast.mixture_statistics(x, torch.zeros(2, device=device), means, scale, covariance_type=covariance)
    torch.testing.assert_close(got.first, torch.tensor([[4.0], [0.0]], device=device))
    torch.testing.assert_close(got.second.flatten(), torch.tensor([8.5, 0.0], device=device))


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_the_precision_of_a_linear_layer_is_that_of_its_product(reduction, device, backend):
    x = torch.rand(3, 4, dtype=torch.float64, device=device).requires_grad_()
    h, weight = torch.randn(3, 2, device=device), torch.randn(4, 2, device=device)
    got = vae_fast.linear_bernoulli_log_prob(x, h, weight, reduction=reduction)
    assert got.dtype == torch.float32
    got.sum().backward()
    assert x.grad.dtype == torch.float64


# --- sums and means over a batch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("rows", [3, 100, 3000])
def test_a_mean_is_in_range_where_the_sum_is_not(rows, reduction, device, backend):
    mu = torch.full((rows, 3), 1e19, device=device)
    want = 1.5e38 if reduction == "mean" else math.inf
    assert vae_fast.gaussian_kl(mu, torch.zeros_like(mu), reduction=reduction).item() == pytest.approx(want, rel=1e-6)


def test_huge_numbers_and_an_infinity_of_the_other_sign(device, backend):
    """The huge ones alone would be out of range; the sum is the infinity, not NaN."""
    x, recon = torch.ones(100, 1, device=device), torch.zeros(1, 100, 1, device=device)
    z, mu, logvar = (
        torch.full((1, 100, 1), 1e19, device=device),
        torch.zeros(100, 1, device=device),
        torch.full((100, 1), 20.0, device=device),
    )
    logvar[70] = -80.0
    for reduction, want in (("sum", -math.inf), ("mean", -math.inf)):
        assert vae_fast.iwae_loss(x, recon, z, mu, logvar, reduction=reduction).item() == want
    logvar[70] = 20.0
    assert vae_fast.iwae_loss(x, recon, z, mu, logvar).item() == pytest.approx(5e37, rel=1e-6)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_negative_beta_and_two_terms_out_of_range(reduction, device, backend):
    """The one exception of `elbo_loss` from what gives no NaN; the gradients stay."""
    x, recon = torch.tensor([[1.8e38], [1.8e38], [0.0]], device=device), torch.zeros(3, 1, device=device)
    mu = torch.tensor([[3e38], [0.0], [3e38]], device=device)
    tensors = [x, recon, mu, torch.zeros_like(mu)]
    got, grads = value_and_grads(lambda *t: vae_fast.elbo_loss(*t, likelihood="gaussian", beta=-1.0, reduction=reduction), tensors)
    assert str(got.tolist()) == ("[nan, inf, -inf]" if reduction == "none" else "nan")
    assert not any(g.isnan().any() for g in grads)


# --- bounds that are infinite ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("dim", [0, 1])
def test_an_infinite_result_has_no_gradient(dim, weighted, device, backend):
    a = torch.tensor([[math.inf, -math.inf, 1.0], [2.0, -math.inf, 1.0]], device=device)
    tensors = [a if dim == 0 else a.T.contiguous()]
    tensors += [torch.full_like(tensors[0], 0.5)] * weighted
    got, grads = value_and_grads(lambda a, *w: vae_fast.logsumexp(a, dim, *w), tensors)
    half = -math.log(2.0) * weighted
    assert got.tolist() == pytest.approx([math.inf, -math.inf, 1.0 + math.log(2.0) + half], abs=1e-6)
    of_a = torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.0, 0.5]])
    torch.testing.assert_close((grads[0] if dim == 0 else grads[0].T).cpu(), of_a)
    if weighted:
        torch.testing.assert_close((grads[1] if dim == 0 else grads[1].T).cpu(), 2.0 * of_a)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_bound_out_of_range_has_no_gradient(reduction, device, backend):
    """Under its posterior one sample has no density, under the model all have: the bound is infinite, and so are some derivatives."""
    x, recon = torch.ones(2, 3, device=device), torch.full((2, 2, 3), 0.5, device=device)
    z = torch.tensor([[[-0.6], [9984.0]], [[0.5], [1.0]]], device=device)
    mu, logvar = torch.tensor([[-6e4], [0.0]], device=device), torch.tensor([[-400.0], [20.0]], device=device)
    got, grads = value_and_grads(lambda *t: vae_fast.iwae_loss(*t, reduction=reduction), [x, recon, z, mu, logvar])
    assert (got[0] if reduction == "none" else got).item() == -math.inf
    assert not any(g.isnan().any() for g in grads)
    assert not any(g.select(g.ndim - 2, 0).any() for g in grads)
    assert all(g.select(g.ndim - 2, 1).any() for g in grads)


# --- sums over samples, of halves --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (4, 2), (2,), ()], ids=str)
def test_the_gradient_of_a_half_prior_is_summed_before_it_is_rounded(shape, device, backend):
    """Of one sample and one latent it may be out of a half's range where the sum over all is not."""
    x, recon, z = torch.zeros(4, 3, device=device), torch.zeros(2, 4, 3, device=device), torch.full((2, 4, 2), 1.5, device=device)
    z[1] = -1.4375
    mu = torch.zeros(4, 2, device=device)

    def gradient(dtype):
        prior = torch.zeros(shape, dtype=dtype, device=device, requires_grad=True)
        given = [t.to(dtype) if dtype == torch.float64 else t for t in (x, recon, z, mu, torch.zeros_like(mu))]
        loss = vae_fast.iwae_loss(*given, prior_mu=prior, reduction="sum")
        return torch.autograd.grad(loss, prior, torch.full_like(loss, 2.0**17))[0]

    want = gradient(torch.float64)
    assert (want.abs() < 4e4).all()  # the sum of -98304 and 94208, and so on
    torch.testing.assert_close(gradient(torch.float16).double(), want, rtol=1e-3, atol=0.0)

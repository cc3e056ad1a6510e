"""The four ways to clip a Bernoulli: exactly what their documentation says, in float32 at eps=1e-9 too."""

import math

import pytest
import torch
import torch.nn.functional as F
from oracle import value_and_grads

import vae_fast

FLOATS = [torch.float32, torch.float64]
EDGES = [0.0, 1e-45, 1e-38, 1e-12, 1e-9, 2e-9, 1e-7, 1e-3, 0.5, 0.999, 1 - 1e-6, 1 - 2.0**-23, 1 - 2.0**-24, 1.0]


def edges(dtype, device):
    """All pairs of a target and a probability at the edges, as columns."""
    p = torch.tensor(EDGES, dtype=torch.float64).to(device, dtype)
    x = torch.tensor([0.0, 1.0, 0.25, 1e-3], dtype=dtype, device=device)
    return [t.flatten()[:, None] for t in torch.meshgrid(x, p, indexing="ij")]


def log_prob(clip, eps=1e-9):
    return lambda x, p: vae_fast.bernoulli_log_prob(x, probs=p, clip=clip, eps=eps)


@pytest.mark.parametrize("eps", [1e-9, 1e-6, 0.1])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_clamp_is_exact_for_any_eps(dtype, eps, device, backend):
    x, p = edges(dtype, device)
    value, grads = value_and_grads(log_prob("clamp", eps), [x, p])
    assert value.isfinite().all()
    wide_x, wide = x.double(), p.double()
    low, high = wide < eps, 1 - wide < eps
    inside = wide.masked_fill(low | high, 0.5)
    log_p = inside.log().masked_fill(low, math.log(eps)).masked_fill(high, math.log1p(-eps))
    log_q = torch.log1p(-inside).masked_fill(low, math.log1p(-eps)).masked_fill(high, math.log(eps))
    rtol = 2e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(value.double(), (wide_x * log_p + (1 - wide_x) * log_q)[:, 0], rtol=rtol, atol=0)
    torch.testing.assert_close(grads[0].double(), log_p - log_q, rtol=rtol, atol=rtol)
    slope = ((wide_x - inside) / (inside * (1 - inside))).masked_fill(low | high, 0.0)
    sure = (wide - eps).abs() > 1e-6 * eps  # p equal to eps up to its rounding: either side is right
    torch.testing.assert_close(grads[1].double()[sure], slope[sure], rtol=10 * rtol, atol=0)


def test_clamp_at_zero_and_one_in_float32(device, backend):
    """The case that the textbook code turns into inf and NaN."""
    p = torch.tensor([[0.0], [1.0], [0.0], [1.0]], device=device)
    x = torch.tensor([[0.0], [1.0], [1.0], [0.0]], device=device)
    value, grads = value_and_grads(log_prob("clamp"), [x, p])
    want = torch.tensor([math.log1p(-1e-9)] * 2 + [math.log(1e-9)] * 2, device=device)
    torch.testing.assert_close(value, want, rtol=1e-6, atol=0)
    assert (grads[1] == 0).all()
    textbook = (1 - x) * (1 - p.clamp(1e-9, 1 - 1e-9)).log() + x * p.clamp(1e-9, 1 - 1e-9).log()
    assert not textbook.isfinite().all()


def test_clamp_clips_probabilities_out_of_range(device, backend):
    p = torch.tensor([[-0.5], [1.5], [-1e30], [1e30]], device=device)
    x = torch.tensor([[1.0], [0.0], [0.0], [1.0]], device=device)
    value, grads = value_and_grads(log_prob("clamp", 1e-3), [x, p])
    want = torch.tensor([math.log(1e-3)] * 2 + [math.log1p(-1e-3)] * 2, device=device)
    torch.testing.assert_close(value, want, rtol=1e-6, atol=0)
    assert (grads[1] == 0).all()


@pytest.mark.parametrize("eps", [1e-9, 1e-3])
def test_clamp_of_logits_is_clamp_of_their_probabilities(eps, device, backend):
    a = torch.linspace(-30, 30, 241, dtype=torch.float64, device=device)[:, None]
    for target in (0.0, 1.0, 0.3):
        x = torch.full_like(a, target)
        value, grads = value_and_grads(lambda x, a: vae_fast.bernoulli_log_prob(x, a, clip="clamp", eps=eps), [x, a])
        want, want_grads = value_and_grads(lambda x, a: log_prob("clamp", eps)(x, a.sigmoid()), [x, a])
        torch.testing.assert_close(value, want, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(grads[1], want_grads[1], rtol=1e-5, atol=1e-9)
        assert (grads[1][a.abs() > math.log((1 - eps) / eps)] == 0).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("eps", [1e-9, 1e-3])
def test_add(dtype, eps, device, backend):
    x, p = edges(dtype, device)
    value, grads = value_and_grads(log_prob("add", eps), [x, p])
    rtol = 2e-6 if dtype == torch.float32 else 1e-12
    wide_x, wide = x.double(), p.double()
    q = (1 - p).double()  # exact in float32 from p = 1/2 on, and rounding below does no harm
    truth = wide_x * (wide + eps).log() + (1 - wide_x) * (q + eps).log()
    torch.testing.assert_close(value.double(), truth[:, 0], rtol=rtol, atol=2e-7)
    torch.testing.assert_close(grads[1].double(), wide_x / (wide + eps) - (1 - wide_x) / (q + eps), rtol=rtol, atol=2e-7)
    torch.testing.assert_close(grads[0].double(), (wide + eps).log() - (q + eps).log(), rtol=rtol, atol=2e-7)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_bce_is_that_of_torch_in_value_and_gradient(dtype, device, backend):
    x, p = edges(dtype, device)
    value, grads = value_and_grads(log_prob("bce"), [x, p])
    want, want_grads = value_and_grads(lambda x, p: -F.binary_cross_entropy(p, x, reduction="none")[:, 0], [x, p])
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(value, want, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(grads[1], want_grads[1], rtol=max(2 * tolerance, 1e-8), atol=tolerance)  # torch's 1e-12 is a float
    wide = p.double()
    slope = wide.log().clamp(min=-100) - torch.log1p(-wide).clamp(min=-100)
    torch.testing.assert_close(grads[0].double(), slope, rtol=tolerance, atol=tolerance)


def test_bce_of_logits_is_torch_of_their_sigmoid(device, backend):
    a = torch.linspace(-33, 33, 331, dtype=torch.float64, device=device)[:, None]
    for target in (0.0, 1.0, 0.3):
        x = torch.full_like(a, target)
        value, grads = value_and_grads(lambda x, a: vae_fast.bernoulli_log_prob(x, a, clip="bce"), [x, a])
        want, want_grads = value_and_grads(lambda x, a: -F.binary_cross_entropy(a.sigmoid(), x, reduction="none")[:, 0], [x, a])
        exact = a.abs() < 15  # beyond, sigmoid(a) in float64 has lost digits of 1 - p
        torch.testing.assert_close(value[exact[:, 0]], want[exact[:, 0]], rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(grads[1][exact], want_grads[1][exact], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(value, want, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_without_a_clip_infinity_only_where_it_is_true(dtype, device, backend):
    x, p = edges(dtype, device)
    value, grads = value_and_grads(log_prob(None), [x, p])
    wide_x, wide = x.double(), p.double()
    truth = torch.xlogy(wide_x, wide) + torch.special.xlog1py(1 - wide_x, -wide)
    torch.testing.assert_close(value.double(), truth[:, 0], rtol=2e-6, atol=1e-44)
    slope = torch.where(wide_x == 0, 0.0, wide_x / wide) - torch.where(wide_x == 1, 0.0, (1 - wide_x) / (1 - wide))
    slope = torch.where(slope.abs() > torch.finfo(dtype).max, slope.sign() * math.inf, slope)
    assert not grads[1].isnan().any()
    torch.testing.assert_close(grads[1].double(), slope, rtol=4e-6, atol=0)


@pytest.mark.parametrize("clip", [None, "add", "bce"])
def test_probabilities_out_of_range_give_nan(clip, device, backend):
    p = torch.tensor([[-0.5], [1.5]], device=device)
    value = vae_fast.bernoulli_log_prob(torch.full_like(p, 0.5), probs=p, clip=clip, eps=1e-9)
    assert value.isnan().all()


@pytest.mark.parametrize("clip", [None, "clamp", "add", "bce"])
@pytest.mark.parametrize("space", ["logits", "probs"])
def test_elbo_clips_as_the_likelihood_does(space, clip, device, backend):
    x, p = edges(torch.float64, device)
    recon = p if space == "probs" else torch.logit(p.clamp(1e-12, 1 - 1e-12))
    zero = torch.zeros_like(p)
    log_prob = vae_fast.bernoulli_log_prob(x, **{space: recon}, clip=clip, eps=1e-4)
    likelihood = "bernoulli" if space == "logits" else "bernoulli_probs"
    value = vae_fast.elbo(x, recon, zero, zero, likelihood=likelihood, clip=clip, eps=1e-4)
    torch.testing.assert_close(value, log_prob, rtol=1e-12, atol=0)

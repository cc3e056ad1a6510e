"""Mixture density networks: values and gradients against torch.distributions, broadcasting, the floor under sigma, and the extremes."""

import math

import pytest
import torch
from mixtures import ARGUMENTS, LOG_2PI, MDNS, assert_gradient_within_contract, mdn_log_prob, mdn_problem
from oracle import assert_within_contract, leaves, needs_kernels, value_and_grads
from torch.autograd import gradcheck, gradgradcheck

import vae_fast

# Batch, components, dimensions.
SIZES = [((0,), 3, 2), ((1,), 1, 1), ((), 5, 3), ((1000,), 5, 1), ((63,), 300, 2), ((17, 3), 17, 5), ((5,), 2, 130), ((1001,), 3, 17)]
shared_or_not = pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])


@pytest.mark.parametrize("size", SIZES, ids=str)
@shared_or_not
def test_values_and_gradients(shared, size, device, backend):
    for dtype in (torch.float32, torch.float64):
        tensors = mdn_problem(*size, shared, dtype, device)
        upstream = torch.randn(size[0], dtype=dtype, device=device)
        value, grads = value_and_grads(vae_fast.mdn_log_prob, tensors, upstream)
        assert (value.dtype, value.shape) == (dtype, size[0])
        plain, plain_grads = value_and_grads(mdn_log_prob, tensors, upstream)
        truth, want = value_and_grads(mdn_log_prob, [t.double() for t in tensors], upstream)
        single = dtype == torch.float32
        slack = 1e-12 if not single else 1e-6 if backend == "compiled" else 1e-5  # the reference is plain torch, rounded otherwise
        assert_within_contract(value, truth, plain if single else None, 1e-6 if single else 1e-12)
        for name, got, formula, true in zip(ARGUMENTS, grads, plain_grads, want, strict=True):
            assert got.dtype == dtype
            if size[1] == 1 and name == "weight_logits":
                assert not got.any()
            else:
                assert_gradient_within_contract(got, true, formula if single else None, slack, name)


@needs_kernels
def test_float32_errs_by_no_more_than(device):
    for d, figure in ((1, 2e-6), (2, 2e-6), (16, 1e-5), (128, 3e-5)):
        for shared in (False, True):
            tensors = mdn_problem((3000,), 5, d, shared, torch.float32, device)
            error = (vae_fast.mdn_log_prob(*tensors).double() - mdn_log_prob(*(t.double() for t in tensors))).abs().max().item()
            # the targets are not drawn from the mixture: a log-likelihood is rounded relative to its own size too
            size = mdn_log_prob(*(t.double() for t in tensors)).abs().max().item()
            assert error <= max(figure, 1.5e-7 * size), f"D={d}: {error:.3g} nats of {size:.3g}"


@shared_or_not
def test_sums_over_components_do_not_drift(shared, device, backend):
    """5,000 components that all matter."""
    y, logits, means, log_scale = mdn_problem((6,), 5000, 2, shared, torch.float32, device)
    tensors = [y, 0.1 * logits, means, log_scale]
    assert_within_contract(vae_fast.mdn_log_prob(*tensors), mdn_log_prob(*(t.double() for t in tensors)), mdn_log_prob(*tensors))


# Shapes of the batch of y, weight_logits, means and log_scale.
BATCHES = {
    "one network output for all targets": ((6, 4), (), (), ()),
    "one target for all outputs": ((), (6, 4), (6, 4), (6, 4)),
    "samples of the target": ((7, 1, 4), (4,), (4,), (4,)),
    "shared weights": ((6, 4), (1, 1), (6, 4), (6, 4)),
    "shared scales": ((6, 4), (6, 4), (6, 4), (1, 4)),
    "shared means": ((6, 4), (6, 4), (1, 1), (6, 4)),
    "an outer product": ((6, 1), (1, 4), (6, 1), (1, 4)),
    "nothing": ((0, 4), (1, 4), (1, 1), (0, 1)),
}


@pytest.mark.parametrize("batches", BATCHES.values(), ids=BATCHES)
@shared_or_not
def test_leading_dimensions_broadcast(shared, batches, device, backend):
    k, d = 3, 2
    tails = ((d,), (k,), (k, d), (k,) if shared else (k, d))
    tensors = [torch.randn(*b, *t, dtype=torch.float64, device=device) for b, t in zip(batches, tails, strict=True)]
    wide = torch.broadcast_shapes(*batches)
    upstream = torch.randn(wide, dtype=torch.float64, device=device)
    value, grads = value_and_grads(vae_fast.mdn_log_prob, tensors, upstream)

    def expanded(*t):
        return mdn_log_prob(*(v.expand(*wide, *tail) for v, tail in zip(t, tails, strict=True)))

    truth, want = value_and_grads(expanded, tensors, upstream)
    assert value.shape == wide
    torch.testing.assert_close(value, truth, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(grads, want, rtol=1e-10, atol=1e-12)


@shared_or_not
def test_targets_of_one_dimension_are_columns(shared, device, backend):
    """y (N, 1), as the examples of mixture density networks have it."""
    y, logits, means, log_scale = mdn_problem((50,), 4, 1, shared, device=device)
    want = (torch.distributions.Normal(means[..., 0], log_scale.reshape(50, 4).exp()).log_prob(y) + logits.log_softmax(-1)).logsumexp(-1)
    torch.testing.assert_close(vae_fast.mdn_log_prob(y, logits, means, log_scale), want)


# --- the floor --------------------------------------------------------------------------------------------------------


@shared_or_not
def test_sigma_is_never_below_its_floor(shared, device, backend):
    y, logits, means, log_scale = tensors = mdn_problem((40,), 3, 2, shared, device=device)
    floor = 1.1
    low = log_scale.exp() < floor
    assert low.any() and not low.all()
    value, grads = value_and_grads(lambda *t: vae_fast.mdn_log_prob(*t, min_scale=floor), tensors)
    truth, want = value_and_grads(lambda *t: mdn_log_prob(*t, min_scale=floor), tensors)
    torch.testing.assert_close(value, truth, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(grads, want, rtol=1e-10, atol=1e-12)
    assert not grads[3][low].any()
    assert grads[3][~low].all()
    raised = torch.where(low, math.log(floor), log_scale)
    torch.testing.assert_close(vae_fast.mdn_log_prob(y, logits, means, raised), value, rtol=1e-12, atol=1e-13)


@shared_or_not
def test_far_below_its_floor_sigma_is_the_floor(shared, device, backend):
    y, logits, means, log_scale = mdn_problem((6,), 3, 2, shared, torch.float32, device)
    for below in (-20.0, -1e4, -3e38, -math.inf):
        tensors = [y, logits, means, torch.full_like(log_scale, below)]
        value, grads = value_and_grads(lambda *t: vae_fast.mdn_log_prob(*t, min_scale=0.5), tensors)
        at_floor = vae_fast.mdn_log_prob(y, logits, means, torch.full_like(log_scale, math.log(0.5)))
        torch.testing.assert_close(value, at_floor, rtol=1e-6, atol=1e-6)
        assert not grads[3].any()
        assert all(g.isfinite().all() for g in grads)


def test_the_floor_stops_a_spike(device, backend):
    """Without one, a component on a target has any likelihood it likes."""
    y = torch.zeros(1, 1, device=device)
    args = [y, torch.zeros(1, 2, device=device), torch.zeros(1, 2, 1, device=device), torch.full((1, 2), -50.0, device=device)]
    assert vae_fast.mdn_log_prob(*args).item() == pytest.approx(50.0 - 0.5 * LOG_2PI)
    assert vae_fast.mdn_log_prob(*args, min_scale=1e-2).item() == pytest.approx(-math.log(1e-2) - 0.5 * LOG_2PI)
    assert vae_fast.mdn_log_prob(*args, min_scale=0).item() == pytest.approx(50.0 - 0.5 * LOG_2PI)  # an int, and no floor


@pytest.mark.parametrize("min_scale", [0.0, 1.05])
@shared_or_not
def test_gradcheck_with_and_without_a_floor(shared, min_scale, device, backend):
    for k, d in ((3, 2), (1, 1), (2, 5)):
        tensors = mdn_problem((2,), k, d, shared, device=device)
        if min_scale:  # gradients are checked away from the kink
            gap = tensors[3] - math.log(min_scale)
            tensors[3] = math.log(min_scale) + gap.sign() * gap.abs().clamp(min=0.05)
        tensors = leaves(tensors)
        assert gradcheck(lambda *t: vae_fast.mdn_log_prob(*t, min_scale=min_scale), tensors)
        if (k, d) != (2, 5):
            assert gradgradcheck(lambda *t: vae_fast.mdn_log_prob(*t, min_scale=min_scale), tensors)


# --- dtypes and layouts -----------------------------------------------------------------------------------------------


@shared_or_not
def test_mixtures_of_dtypes(shared, device, backend):
    floats = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    for dtypes in [tuple(floats[(a + b * i) % 4] for i in range(4)) for a in range(4) for b in range(4)]:
        tensors = [t.to(dt) for t, dt in zip(mdn_problem((9,), 3, 2, shared, device=device), dtypes, strict=True)]
        value, grads = value_and_grads(vae_fast.mdn_log_prob, tensors)
        truth, want = value_and_grads(mdn_log_prob, [t.double() for t in tensors])
        double = torch.float64 in dtypes
        assert value.dtype == (torch.float64 if double else torch.float32)
        assert_within_contract(value, truth, slack=1e-12 if double else 1e-6)
        for g, w, dtype in zip(grads, want, dtypes, strict=True):
            assert g.dtype == dtype
            finfo = torch.finfo(dtype)
            exact = (1e-12 if double else 4e-6) * w.abs().max().item()
            rounding = 0.0 if dtype == torch.float64 else 0.5001 * finfo.eps
            torch.testing.assert_close(g.double(), w, rtol=rounding, atol=exact + finfo.smallest_normal * finfo.eps)


@pytest.mark.parametrize("case", MDNS, ids=str)
def test_network_outputs_cut_from_one_tensor(case, device, backend):
    """The usual head: one linear layer whose output is split into logits, means and scales, none of them contiguous."""
    k, d = 3, 2
    n_scale = k if case.form == "shared" else k * d
    y = torch.randn(11, d, dtype=torch.float64, device=device)
    out = torch.randn(11, k + k * d + n_scale, dtype=torch.float64, device=device)

    def head(f):
        def run(out):
            logits, means, log_scale = out.split([k, k * d, n_scale], -1)
            return f(y, logits, means.unflatten(-1, (k, d)), log_scale if case.form == "shared" else log_scale.unflatten(-1, (k, d)))

        return run

    value, grads = value_and_grads(head(case.ours), [out])
    truth, want = value_and_grads(head(case.plain), [out])
    torch.testing.assert_close(value, truth, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(grads, want, rtol=1e-10, atol=1e-12)


# --- extremes ---------------------------------------------------------------------------------------------------------


@shared_or_not
def test_weights_of_zero(shared, device, backend):
    y, logits, means, log_scale = mdn_problem((6,), 4, 2, shared, torch.float32, device)
    logits[:, 1] = -math.inf
    logits[2] = torch.tensor([-math.inf, -math.inf, -math.inf, 3.0], device=device)
    means[:, 1] = y
    log_scale[:, 1] = -80.0
    kept = [y, logits[:, [0, 2, 3]], means[:, [0, 2, 3]], log_scale[:, [0, 2, 3]]]
    value, grads = value_and_grads(vae_fast.mdn_log_prob, [y, logits, means, log_scale])
    want, want_grads = value_and_grads(vae_fast.mdn_log_prob, kept)
    torch.testing.assert_close(value, want, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(grads[0], want_grads[0], rtol=5e-6, atol=5e-6)
    for g, w in zip(grads[1:], want_grads[1:], strict=True):
        torch.testing.assert_close(g[:, [0, 2, 3]], w, rtol=5e-6, atol=5e-6)
        assert not g[:, 1].any()


@pytest.mark.parametrize("log_std", [-80.0, -40.0, 40.0, 80.0])
@shared_or_not
def test_scales_far_out(shared, log_std, device, backend):
    std = math.exp(log_std)
    y = torch.tensor([[0.0, 0.0], [2.0 * std, -std], [30 * std, 0.0]], device=device)
    means = torch.zeros(3, 2, 2, device=device)
    log_scale = torch.full((3, 2) if shared else (3, 2, 2), log_std, device=device)
    value, grads = value_and_grads(vae_fast.mdn_log_prob, [y, torch.zeros(3, 2, device=device), means, log_scale])
    u = y.double() / std
    torch.testing.assert_close(value.double(), -0.5 * u.square().sum(-1) - 2 * log_std - LOG_2PI, rtol=4e-6, atol=0)
    torch.testing.assert_close(grads[0].double(), -u / std, rtol=2e-5, atol=2e-38)
    torch.testing.assert_close(grads[2].double(), (u / std)[:, None].expand(3, 2, 2) / 2, rtol=2e-5, atol=2e-38)
    slope = u.square() - 1
    slope = slope.sum(-1, keepdim=True) if shared else slope[:, None]
    torch.testing.assert_close(grads[3].double(), slope.expand(log_scale.shape) / 2, rtol=2e-5, atol=1e-6)


@shared_or_not
def test_targets_far_from_every_component(shared, device, backend):
    y, logits, means, log_scale = mdn_problem((5,), 3, 2, shared, torch.float32, device)
    y[1], y[2], y[3] = 1e15, 1e30, -3e38
    value, grads = value_and_grads(vae_fast.mdn_log_prob, [y, logits, means, log_scale])
    truth = mdn_log_prob(*(t.double() for t in (y, logits, means, log_scale)))
    torch.testing.assert_close(value[[0, 1, 4]].double(), truth[[0, 1, 4]], rtol=2e-6, atol=1e-6)
    assert (value[2:4] == -math.inf).all()
    assert all(g.isfinite().all() for g in grads)
    assert not any(g[2:4].any() for g in grads)
    torch.testing.assert_close(grads[2][1].sum(0), -grads[0][1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("case", MDNS, ids=str)
def test_nan_stays_in_its_row(case, device, backend):
    tensors = case.tensors((9, 5), dtype=torch.float32, device=device)
    clean, clean_grads = value_and_grads(case.ours, tensors)
    others = torch.tensor([0, 1, 2, 3, 4, 5, 7, 8], device=device)
    for i in range(4):
        dirty = [t.clone() for t in tensors]
        dirty[i][6].view(-1)[-1] = math.nan
        value, grads = value_and_grads(case.ours, dirty)
        assert value[6].isnan()
        assert torch.equal(value[others], clean[others])
        assert all(torch.equal(g[others], w[others]) for g, w in zip(grads, clean_grads, strict=True))

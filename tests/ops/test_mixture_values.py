"""Mixture log-densities and responsibilities against torch.distributions in float64: every size, dtype and layout."""

import itertools

import pytest
import torch
from mixtures import COVARIANCES, LOG_PROBS, RESPONSIBILITIES, gradient_errors, log_prob, problem, responsibilities
from oracle import assert_within_contract, needs_kernels, value_and_grads

import vae_fast

HALVES = [torch.float16, torch.bfloat16]
FLOATS = [*HALVES, torch.float32, torch.float64]

# Rows, components, dimensions: each odd size at least once with each neighbour that matters.
SIZES = [
    (0, 3, 5),
    (1, 1, 1),
    (1, 300, 2),
    (3, 2, 130),
    (3, 1, 17),
    (1000, 17, 1),
    (1000, 2, 5),
    (999, 300, 1),
    (130, 300, 5),
    (61, 17, 64),
    (37, 2, 17),
    (257, 17, 2),
    (64, 1, 64),
    (20, 3, 130),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_float64_is_exact_to_rounding(covariance_type, size, device, backend):
    tensors = problem(*size, covariance_type, device=device)
    value = vae_fast.mixture_log_prob(*tensors, covariance_type=covariance_type)
    q = vae_fast.mixture_responsibilities(*tensors, covariance_type=covariance_type)
    assert value.dtype == q.dtype == torch.float64
    assert q.shape == (size[0], size[1])
    assert_within_contract(value, log_prob(*tensors, covariance_type), slack=1e-12)
    torch.testing.assert_close(q, responsibilities(*tensors, covariance_type), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_float32_is_within_the_contract(covariance_type, size, device, backend):
    errors = torch.zeros(2, dtype=torch.float64)
    for _ in range(4):  # so that no lucky rounding in a handful of rows decides
        tensors = problem(*size, covariance_type, torch.float32, device)
        wide = [t.double() for t in tensors]
        value = vae_fast.mixture_log_prob(*tensors, covariance_type=covariance_type)
        q = vae_fast.mixture_responsibilities(*tensors, covariance_type=covariance_type)
        assert value.dtype == q.dtype == torch.float32
        assert_within_contract(value, log_prob(*wide, covariance_type), log_prob(*tensors, covariance_type))
        torch.testing.assert_close(q.double().sum(-1), torch.ones_like(value).double(), rtol=0, atol=1e-6)
        truth = responsibilities(*wide, covariance_type)
        if truth.numel():
            errors += torch.stack([(t.double() - truth).abs().max().cpu() for t in (q, responsibilities(*tensors, covariance_type))])
    # What an error of 1e-6 relative in the log-likelihood makes of q is all that the reference, plain torch itself, can promise.
    slack = 1.0 if backend == "compiled" else max([1.0, *value.abs().tolist()])
    assert errors[0] <= errors[1] + 4e-6 * slack


# Rows, components, dimensions, common offset: the greatest error of a log-likelihood in nats.
FIGURES = {
    (40_000, 10, 2, 0.0): 2e-6,
    (6_000, 64, 16, 100.0): 1e-5,
    (3_000, 10, 128, 0.0): 3e-5,
    (600, 5, 784, 1000.0): 2e-4,
}


@pytest.mark.parametrize("separation", [2.0, 8.0], ids=["overlapping", "apart"])
@pytest.mark.parametrize("size", FIGURES, ids=str)
@pytest.mark.parametrize("covariance_type", COVARIANCES)
@needs_kernels
def test_float32_errs_by_no_more_than(covariance_type, size, separation, device):
    *shape, offset = size
    if covariance_type in ("tied", "full") and shape[2] > 100:
        shape[:2] = 64_000 // shape[2], 2
    tensors = problem(*shape, covariance_type, torch.float32, device, offset, separation)
    value = vae_fast.mixture_log_prob(*tensors, covariance_type=covariance_type)
    error = (value.double() - log_prob(*(t.double() for t in tensors), covariance_type)).abs().max().item()
    assert error <= FIGURES[size], f"{error:.3g} nats"


@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_sums_over_components_do_not_drift(covariance_type, device, backend):
    """5,000 components that all matter."""
    x, logits, means, scale = problem(20, 5000, 2, covariance_type, torch.float32, device)
    tensors = [x, 0.1 * logits, means, scale]
    value = vae_fast.mixture_log_prob(*tensors, covariance_type=covariance_type)
    assert_within_contract(value, log_prob(*(t.double() for t in tensors), covariance_type), log_prob(*tensors, covariance_type))
    q = vae_fast.mixture_responsibilities(*tensors, covariance_type=covariance_type)
    torch.testing.assert_close(q.double().sum(-1), torch.ones_like(value).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch", [(), (1,), (7,), (2, 3), (2, 1, 3), (0,), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_leading_dimensions_are_batch(covariance_type, batch, device, backend):
    tensors = problem(batch, 3, 4, covariance_type, device=device)
    value, grads = value_and_grads(lambda *t: vae_fast.mixture_log_prob(*t, covariance_type=covariance_type), tensors)
    q, q_grads = value_and_grads(lambda *t: vae_fast.mixture_responsibilities(*t, covariance_type=covariance_type), tensors)
    assert value.shape == batch
    assert q.shape == (*batch, 3)
    torch.testing.assert_close(value, log_prob(*tensors, covariance_type).reshape(batch), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(q, responsibilities(*tensors, covariance_type).reshape(*batch, 3), rtol=1e-10, atol=1e-12)
    for got in (grads, q_grads):
        assert [g.shape for g in got] == [t.shape for t in tensors]
        if 0 in batch:
            assert not any(g.any() for g in got)


# --- dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_mixtures_of_dtypes(covariance_type, device, backend):
    for dtypes in [(a, b, c, d) for a, b in itertools.product(FLOATS, FLOATS) for c, d in ((a, b), (b, torch.float32))]:
        tensors = [t.to(dt) for t, dt in zip(problem(9, 3, 5, covariance_type, device=device), dtypes, strict=True)]
        wide = [t.double() for t in tensors]
        double = torch.float64 in dtypes
        value, grads = value_and_grads(lambda *t: vae_fast.mixture_log_prob(*t, covariance_type=covariance_type), tensors)
        q = vae_fast.mixture_responsibilities(*tensors, covariance_type=covariance_type)
        truth, want = value_and_grads(lambda *t: log_prob(*t, covariance_type), wide)
        plain_grads = value_and_grads(lambda *t: log_prob(*t, covariance_type), [t.float() for t in tensors])[1]
        assert value.dtype == q.dtype == (torch.float64 if double else torch.float32)
        assert_within_contract(value, truth, slack=1e-12 if double else 1e-6)
        torch.testing.assert_close(q.double(), responsibilities(*wide, covariance_type), rtol=0, atol=1e-12 if double else 2e-6)
        for g, w, plain, dtype in zip(grads, want, plain_grads, dtypes, strict=True):
            assert g.dtype == dtype
            finfo = torch.finfo(dtype)
            exact = 1e-12 if double else gradient_errors(plain, w)[1] + 1e-6
            rounding = 0.0 if dtype == torch.float64 else 0.5001 * finfo.eps
            smallest = finfo.smallest_normal * finfo.eps
            torch.testing.assert_close(g.double(), w, rtol=rounding, atol=exact * w.abs().max().item() + smallest)


# --- what holds for every mixture -------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_one_component_is_a_gaussian(covariance_type, device, backend):
    x, logits, means, scale = problem(50, 1, 6, covariance_type, torch.float32, device)
    for level in (0.0, -1e30, 1e30):
        logits = torch.full_like(logits, level)
        f = [x, logits, means, scale]
        value, grads = value_and_grads(lambda *t: vae_fast.mixture_log_prob(*t, covariance_type=covariance_type), f)
        wide = [x.double(), torch.zeros_like(logits).double(), means.double(), scale.double()]
        assert_within_contract(value, log_prob(*wide, covariance_type), slack=2e-6)
        assert torch.equal(grads[1], torch.zeros_like(logits))
        assert torch.equal(vae_fast.mixture_responsibilities(*f, covariance_type=covariance_type), torch.ones(50, 1, device=device))


@pytest.mark.parametrize("covariance_type", ["diag", "spherical", "full"])
def test_the_order_of_components_does_not_matter(covariance_type, device, backend):
    x, *parameters = problem(40, 11, 3, covariance_type, device=device)
    order = torch.randperm(11, device=device)
    permuted = [t[order] for t in parameters]
    value = vae_fast.mixture_log_prob(x, *parameters, covariance_type=covariance_type)
    torch.testing.assert_close(vae_fast.mixture_log_prob(x, *permuted, covariance_type=covariance_type), value, rtol=1e-13, atol=1e-13)
    q = vae_fast.mixture_responsibilities(x, *parameters, covariance_type=covariance_type)
    other = vae_fast.mixture_responsibilities(x, *permuted, covariance_type=covariance_type)
    torch.testing.assert_close(other, q[:, order], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", [*LOG_PROBS, *RESPONSIBILITIES], ids=str)
def test_logits_count_up_to_a_constant(case, device, backend):
    x, logits, means, scale = case.tensors((40, 3), device=device)
    value = case.ours(x, logits, means, scale)
    for shift in (100.0, -1e4):
        torch.testing.assert_close(case.ours(x, logits + shift, means, scale), value, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("covariance_type", ["tied", "full"])
def test_the_signs_of_a_factor_s_columns_do_not_matter(covariance_type, device, backend):
    """P and P S have the same product P P^T for a diagonal S of signs."""
    x, logits, means, factor = problem(40, 3, 5, covariance_type, device=device)
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0], dtype=torch.float64, device=device)
    upstream = torch.randn(40, dtype=torch.float64, device=device)

    def f(*t):
        return vae_fast.mixture_log_prob(*t, covariance_type=covariance_type)

    value, grads = value_and_grads(f, [x, logits, means, factor], upstream)
    other, other_grads = value_and_grads(f, [x, logits, means, factor * signs], upstream)
    torch.testing.assert_close(other, value, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(other_grads[:3], grads[:3], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(other_grads[3], grads[3] * signs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("covariance_type", ["diag", "spherical", "tied"])
def test_forms_that_say_the_same_thing_agree(covariance_type, device, backend):
    """A diagonal, a single or a shared scale written out as full factors."""
    x, logits, means, scale = problem(40, 3, 5, covariance_type, device=device)
    if covariance_type == "tied":
        factor = scale.expand(3, 5, 5)
    else:
        log_std = scale if covariance_type == "diag" else scale[:, None].expand(3, 5)
        factor = (-log_std).exp().diag_embed()
    value = vae_fast.mixture_log_prob(x, logits, means, scale, covariance_type=covariance_type)
    full = vae_fast.mixture_log_prob(x, logits, means, factor, covariance_type="full")
    torch.testing.assert_close(full, value, rtol=1e-13, atol=1e-13)


def test_a_density_integrates_to_one(device, backend):
    grid = torch.linspace(-80, 80, 40_001, dtype=torch.float64, device=device)[:, None]
    logits, means, scale = problem(1, 5, 1, device=device)[1:]
    mass = torch.trapezoid(vae_fast.mixture_log_prob(grid, logits, means, scale).exp(), grid[:, 0])
    assert mass.item() == pytest.approx(1.0, abs=1e-6)

"""Gradients of mixtures: float32 against float64, which are wanted, of any layout, twice, and in memory that no N x K tensor fits in."""

import functools
import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from mixtures import (
    ARGUMENTS,
    COVARIANCES,
    LOG_PROBS,
    MIXTURE_CASES,
    MIXTURES,
    RESPONSIBILITIES,
    assert_gradient_within_contract,
    assert_gradients_within_contract,
    problem,
)
from oracle import assert_within_contract, leaves, needs_kernels, value_and_grads
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import vae_fast

FACTORS = ("tied", "full")

# Rows, components, dimensions, common offset.
SIZES = [
    (1, 2, 3, 0.0),
    (1000, 17, 5, 0.0),
    (300, 2, 64, 0.0),
    (65, 300, 3, 0.0),
    (700, 8, 16, 100.0),
    (50, 1, 17, 0.0),
    (40, 3, 130, 0.0),
    (30_001, 3, 2, 0.0),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("case", [*LOG_PROBS, *RESPONSIBILITIES], ids=str)
@needs_kernels
def test_float32_gradients_are_within_the_contract(case, size, device):
    n, k, d, offset = size
    rounds = []
    for _ in range(8 if n * k * d < 50_000 else 3):
        tensors = problem(n, k, d, case.form, torch.float32, device, offset)
        upstream = torch.randn_like(case.ours(*tensors))
        ours = value_and_grads(case.ours, tensors, upstream)[1]
        plain = value_and_grads(case.plain, tensors, upstream)[1]
        truth = value_and_grads(case.plain, [t.double() for t in tensors], upstream)[1]
        assert {g.dtype for g in ours} == {torch.float32}
        rounds.append((ours, plain, truth))
    for i, name in enumerate(ARGUMENTS):
        got, formula, want = ([gradients[i] for gradients in kind] for kind in zip(*rounds, strict=True))
        if k == 1 and (case in RESPONSIBILITIES or name == "weight_logits"):
            assert not any(g.any() for g in got)  # the one component explains everything, wherever it is
        else:
            assert_gradients_within_contract(got, want, formula, what=name)


@pytest.mark.parametrize(("d", "narrow"), [(16, -3.0), (128, -3.0), (16, -20.0), (128, -20.0), (784, -20.0)], ids=str)
@pytest.mark.parametrize("covariance_type", ["diag", "spherical", "full"])
@needs_kernels
def test_components_of_very_different_widths(covariance_type, d, narrow, device):
    """A component whose log-determinant is thousands of nats away takes nothing from the accuracy of the others."""
    case, rounds = MIXTURE_CASES[f"mixture.{covariance_type}"], []
    for _ in range(3):
        x, logits, means, scale = problem(30 if covariance_type == "full" else 300, 3, d, covariance_type, torch.float32, device)
        x = x + means[1:].mean(0)
        if covariance_type == "full":
            scale[0] *= math.exp(-narrow)
        else:
            scale[0] += narrow
        tensors = [x, logits, means, scale]
        value, ours = value_and_grads(case.ours, tensors)
        formula, plain = value_and_grads(case.plain, tensors)
        truth, want = value_and_grads(case.plain, [t.double() for t in tensors])
        assert_within_contract(value, truth, formula)
        rounds.append((ours, plain, want))
    for i, name in enumerate(ARGUMENTS):
        got, formula, want = ([gradients[i] for gradients in kind] for kind in zip(*rounds, strict=True))
        assert_gradients_within_contract(got, want, formula, what=name)


@pytest.mark.parametrize("case", MIXTURES, ids=str)
def test_float64_gradients_are_exact_to_rounding(case, device, backend):
    tensors = case.tensors((41, 7), device=device)
    upstream = torch.randn_like(case.ours(*tensors))
    ours = value_and_grads(case.ours, tensors, upstream)[1]
    truth = value_and_grads(case.plain, tensors, upstream)[1]
    for name, got, want in zip(ARGUMENTS, ours, truth, strict=True):
        assert_gradient_within_contract(got, want, slack=1e-12, what=name)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("case", [*LOG_PROBS, *RESPONSIBILITIES], ids=str)
def test_gradcheck_with_other_numbers_of_components(case, k, device, backend):
    for d in (1, 3):
        assert gradcheck(case.ours, leaves(problem(2, k, d, case.form, device=device)))


@pytest.mark.parametrize("case", [*LOG_PROBS, *RESPONSIBILITIES], ids=str)
def test_second_derivatives_of_one_component_and_of_one_dimension(case, device, backend):
    for k, d in ((1, 2), (2, 1)):
        assert gradgradcheck(case.ours, leaves(problem(2, k, d, case.form, device=device)))


@pytest.mark.parametrize("case", MIXTURES, ids=str)
def test_the_gradient_has_a_gradient(case, device, backend):
    """A gradient penalty through a nonlinear function."""
    tensors = case.tensors((6, 3), device=device)

    def penalty(f):
        t = leaves(tensors)
        grads = torch.autograd.grad(f(*t).square().sum(), t, create_graph=True)
        total = sum(g.square().sum() for g in grads)
        return total.detach(), torch.autograd.grad(total, t)

    value, grads = penalty(case.ours)
    want, want_grads = penalty(case.plain)
    torch.testing.assert_close(value, want, rtol=1e-10, atol=0)
    for got, true in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(got, true, rtol=1e-9, atol=1e-11 * true.abs().max().item())


# --- which gradients are wanted ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MIXTURES, ids=str)
def test_every_combination_of_wanted_gradients(case, device, backend):
    tensors = case.tensors((50, 4), dtype=torch.float32, device=device)
    full = value_and_grads(case.ours, tensors)[1]
    for wanted in itertools.product([False, True], repeat=4):
        if not any(wanted):
            assert not case.ours(*tensors).requires_grad
            continue
        some = value_and_grads(case.ours, tensors, wanted=wanted)[1]
        for got, want, w in zip(some, full, wanted, strict=True):
            assert got is None if not w else torch.equal(got, want)


@pytest.mark.parametrize("case", [*LOG_PROBS, *RESPONSIBILITIES], ids=str)
def test_below_the_diagonal_of_a_factor_nothing_is_read(case, device, backend):
    tensors = case.tensors((20, 5), dtype=torch.float32, device=device)
    if case.form not in FACTORS:
        return
    value, grads = value_and_grads(case.ours, tensors)
    below = torch.ones(5, 5, dtype=torch.bool, device=device).tril(-1)
    for junk in (float("nan"), float("inf"), 3e38):
        other = [*tensors[:3], tensors[3].masked_fill(below, junk)]
        got, got_grads = value_and_grads(case.ours, other)
        assert torch.equal(got, value)
        assert all(torch.equal(a, b) for a, b in zip(got_grads, grads, strict=True))
    assert (grads[3][..., below] == 0).all()
    assert (grads[3][..., ~below] != 0).all()


@pytest.mark.parametrize("case", LOG_PROBS, ids=str)
def test_a_second_backward_over_a_retained_graph_gives_the_same(case, device, backend):
    tensors = leaves(case.tensors((30, 3), dtype=torch.float32, device=device))
    total = case.ours(*tensors).sum()
    first = torch.autograd.grad(total, tensors, retain_graph=True)
    kept = [g.clone() for g in first]
    for g in first:
        g.zero_()  # what the first pass handed out is the caller's
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(total, tensors), kept, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(total, tensors)


@pytest.mark.parametrize("case", MIXTURES, ids=str)
@needs_kernels
def test_inputs_changed_in_place_before_backward_are_detected(case, device):
    for changed in range(4):
        tensors = [t.clone() for t in leaves(case.tensors((5, 3), device=device))]
        out = case.ours(*tensors).sum()
        with torch.no_grad():
            tensors[changed].add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.backward()


@needs_kernels
@pytest.mark.parametrize("covariance_type", ["diag", "spherical"])
def test_no_operation_of_torch_prepares_or_finishes_it(covariance_type, device):
    """Each would be a kernel of its own on a GPU."""
    x, logits, means = torch.randn(20, 3, device=device), torch.randn(5, device=device), torch.randn(5, 3, device=device)
    scale = torch.zeros(5, 3, device=device) if covariance_type == "diag" else torch.zeros(5, device=device)
    inputs = [t.requires_grad_() for t in (x, logits, means, scale)]
    upstream = torch.randn(20, device=device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        out = vae_fast.mixture_log_prob(*inputs, covariance_type=covariance_type)
        torch.autograd.grad(out, inputs, upstream)
    called = {event.key for event in profile.key_averages() if event.key.startswith("aten::")}
    assert "aten::empty" in called
    assert called <= {"aten::empty", "aten::empty_strided", "aten::to", "aten::expand", "aten::detach", "aten::view", "aten::as_strided"}


def test_one_tensor_in_two_places_gets_both_gradients(device, backend):
    t = torch.randn(3, 4, dtype=torch.float64, device=device).requires_grad_()
    assert gradcheck(lambda t: vae_fast.mixture_log_prob(t, t[:, 0], t, t), t)
    assert gradcheck(lambda t: vae_fast.mixture_log_prob(t, t[:, 1], t, t[:, 0], covariance_type="spherical"), t)
    assert gradcheck(lambda t: vae_fast.mdn_log_prob(t[0], t[:, 0], t, t), t)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("case", MIXTURES, ids=str)
def test_activation_checkpointing(case, use_reentrant, device, backend):
    tensors = case.tensors((8, 3), dtype=torch.float32, device=device)
    want = value_and_grads(case.ours, tensors)
    got = value_and_grads(lambda *t: checkpoint(case.ours, *t, use_reentrant=use_reentrant), tensors)
    assert torch.equal(got[0], want[0])
    assert all(torch.equal(a, b) for a, b in zip(got[1], want[1], strict=True))


def test_training_raises_the_likelihood(device, backend):
    """Adam on all parameters finds two clusters."""
    centres = torch.tensor([[-2.0, 1.0], [3.0, -1.0]], device=device)
    x = torch.randn(400, 2, device=device) * 0.3 + centres.repeat(200, 1)
    parameters = leaves([torch.zeros(2, device=device), centres.sign(), torch.zeros(2, 2, device=device)])
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        loss = -vae_fast.mixture_log_prob(x, *parameters).mean()
        loss.backward()
        optimizer.step()
    assert loss.item() == pytest.approx(0.693 + 2 * (1.419 - 1.204), abs=0.1)  # entropy: log 2 and that of two N(., 0.3^2)
    torch.testing.assert_close(parameters[1].detach(), centres, rtol=0, atol=0.1)


# --- memory -----------------------------------------------------------------------------------------------------------


def peak_growth(step, device):
    """Bytes by which memory grows at its worst moment during ``step``, seen from outside: nothing allocated can hide."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before

    def kilobytes(what):
        return int(re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    except OSError:
        pytest.skip("the high-water mark of memory cannot be reset here")
    before = kilobytes("VmRSS")
    step()
    return (kilobytes("VmHWM") - before) * 1024


@pytest.mark.parametrize("covariance_type", COVARIANCES)
@needs_kernels
def test_memory_grows_with_rows_not_with_rows_times_components(covariance_type, device):
    n, k, d = 100_000, 500, 2
    tensors = leaves(problem(n, k, d, covariance_type, torch.float32, device))
    products = n * k * 4  # bytes of one N x K tensor, 200 MB
    few = leaves([tensors[0][:50], *tensors[1:]])

    def step(t):
        vae_fast.mixture_log_prob(*t, covariance_type=covariance_type).sum().backward()

    step(few)  # libraries and thread pools are there
    grown = peak_growth(functools.partial(step, tensors), device)
    assert grown < products / 8, f"{grown / 2**20:.0f} MiB"
    with torch.no_grad():
        x = tensors[0].detach()
        grown = peak_growth(lambda: vae_fast.mixture_statistics(x, *tensors[1:], covariance_type=covariance_type), device)
    assert grown < products / 8, f"{grown / 2**20:.0f} MiB"


def test_the_memory_test_would_see_such_a_tensor(device):
    assert peak_growth(lambda: torch.ones(100_000, 500, device=device), device) > 100_000 * 500 * 4 * 0.9

"""Strides of every argument and upstream gradient: the number of a mixture does not depend on how the memory lies."""

import pytest
import torch
from mixtures import COVARIANCES, LOG_PROBS, MDNS, MIXTURE_CASES, RESPONSIBILITIES, mdn_problem, problem
from oracle import needs_kernels, value_and_grads
from test_layouts import LAYOUTS

import vae_fast

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def gradients_through(f, tensors, views, upstream=None):
    """Value and gradients of the tensors when ``f`` sees views of them."""
    return value_and_grads(lambda *t: f(*(view(v) for view, v in zip(views, t, strict=True))), tensors, upstream)


def keep(t):
    return t


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("case", [*LOG_PROBS, *RESPONSIBILITIES, *MDNS], ids=str)
def test_strides_do_not_change_a_bit(case, layout, device, backend):
    """One argument at a time, and all together."""
    tensors = case.tensors((23, 7), dtype=torch.float32, device=device)
    value, grads = value_and_grads(case.ours, tensors)
    for which in (*({i} for i in range(4)), {0, 1, 2, 3}):
        leaves = [(layout(t) if i in which else t.clone()).requires_grad_() for i, t in enumerate(tensors)]
        out = case.ours(*leaves)
        out.sum().backward()
        tolerance = {"rtol": 0, "atol": 0} if backend == "compiled" else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(out.detach(), value, **tolerance)
        torch.testing.assert_close([t.grad for t in leaves], grads, **tolerance)


@pytest.mark.parametrize("case", [*LOG_PROBS, *RESPONSIBILITIES], ids=str)
def test_expanded_rows(case, device, backend):
    """Stride 0 over the batch, over the features, and over both: the gradient of what was expanded is the sum."""
    _, *parameters = case.tensors((1, 6), device=device)
    for shape in ((1, 6), (4, 1), (1, 1)):
        x = torch.randn(shape, dtype=torch.float64, device=device)
        views = [lambda t: t.expand(4, 6), keep, keep, keep]
        found = gradients_through(case.ours, [x, *parameters], views)
        want = gradients_through(case.plain, [x, *parameters], views)
        torch.testing.assert_close(found, want, **EXACT)


@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_expanded_parameters(covariance_type, device, backend):
    """One mean for all components, one deviation, one factor: parameters may be views too."""
    x, logits, means, scale = problem(9, 3, 4, covariance_type, device=device)
    small = [x, logits[:1], means[:1], scale if covariance_type == "tied" else scale[:1]]
    views = [keep, lambda t: t.expand(3), lambda t: t.expand(3, 4), keep if covariance_type == "tied" else lambda t: t.expand(scale.shape)]
    case = MIXTURE_CASES[f"mixture.{covariance_type}"]
    torch.testing.assert_close(gradients_through(case.ours, small, views), gradients_through(case.plain, small, views), **EXACT)


@pytest.mark.parametrize(
    "case", [MIXTURE_CASES["mixture.diag"], MIXTURE_CASES["mixture.full"], MIXTURE_CASES["responsibilities.diag"], *MDNS], ids=str
)
def test_permuted_batches(case, device, backend):
    tensors = case.tensors((2, 3, 4, 5), device=device)
    value, grads = value_and_grads(case.ours, tensors)
    rows = range(4) if case in MDNS else range(1)

    def permuted(t):
        order = (2, 0, 1, *range(3, t.ndim))
        return t.permute(order).contiguous().permute(1, 2, 0, *range(3, t.ndim))

    other = [permuted(t) if i in rows else t for i, t in enumerate(tensors)]
    assert not other[0].is_contiguous()
    torch.testing.assert_close(value_and_grads(case.ours, other), (value, grads), **EXACT)


UPSTREAMS = {
    "one number": lambda u: u.flatten()[0].expand(u.shape),
    "transposed": lambda u: u.transpose(0, 1).contiguous().transpose(0, 1),
    "every second": lambda u: torch.stack([u, u + 1], -1)[..., 0],
    "expanded in one dimension": lambda u: u[:1].expand(u.shape),
    "zero": torch.zeros_like,
}


@pytest.mark.parametrize("make", UPSTREAMS.values(), ids=UPSTREAMS)
@pytest.mark.parametrize("case", [*LOG_PROBS, *RESPONSIBILITIES, *MDNS], ids=str)
def test_upstream_gradients_of_any_layout(case, make, device, backend):
    tensors = case.tensors((4, 6, 3), device=device)
    upstream = make(torch.randn_like(case.ours(*tensors)))
    found = value_and_grads(case.ours, tensors, upstream)
    torch.testing.assert_close(found, value_and_grads(case.plain, tensors, upstream), **EXACT)


@pytest.mark.parametrize("covariance_type", COVARIANCES)
@needs_kernels
def test_rows_cut_out_of_a_wider_table_are_not_copied(covariance_type, device):
    """Columns of a data table, read where they lie."""
    table = torch.randn(1000, 40, device=device)
    x = table[:, 3:8]
    parameters = problem(1, 3, 5, covariance_type, torch.float32, device)[1:]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        value = vae_fast.mixture_log_prob(x, *parameters, covariance_type=covariance_type)
    torch.testing.assert_close(value, vae_fast.mixture_log_prob(x.contiguous(), *parameters, covariance_type=covariance_type))
    copies = ("aten::copy_", "aten::clone", "aten::contiguous", "aten::_to_copy")
    large = [e.name for e in profile.events() if e.name in copies and any(s and s[0] == 1000 for s in e.input_shapes)]
    assert not large


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_one_set_of_parameters_for_all_targets(shared, device, backend):
    """Expanded over the batch, it is an ordinary mixture."""
    y, *_ = mdn_problem((50,), 3, 4, device=device)
    _, logits, means, log_std = problem(1, 3, 4, "spherical" if shared else "diag", device=device)
    found = gradients_through(
        vae_fast.mdn_log_prob,
        [y, logits, means, log_std],
        [keep, lambda t: t.expand(50, 3), lambda t: t.expand(50, 3, 4), lambda t: t.expand(50, *t.shape)],
    )
    want = value_and_grads(MIXTURE_CASES["mixture.spherical" if shared else "mixture.diag"].ours, [y, logits, means, log_std])
    torch.testing.assert_close(found, want, **EXACT)

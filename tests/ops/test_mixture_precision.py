"""precision="tf32x3", a permission for tensor cores: where there are none nothing changes, elsewhere the error is what the docs say."""

import pytest
import torch
from mixtures import log_prob, problem, responsibilities
from oracle import needs_kernels, value_and_grads

import vae_fast

DIAGONAL = ("diag", "spherical")
PRECISE = {"precision": "tf32x3"}


def results(tensors, covariance_type, **options):
    """Everything that takes a precision, with the gradients of what has any."""
    options["covariance_type"] = covariance_type
    value, grads = value_and_grads(lambda *t: vae_fast.mixture_log_prob(*t, **options), tensors)
    q, q_grads = value_and_grads(lambda *t: vae_fast.mixture_responsibilities(*t, **options).square(), tensors)
    return [value, *grads, q, *q_grads, *vae_fast.mixture_statistics(*tensors, **options)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("covariance_type", DIAGONAL)
def test_the_cpu_computes_as_by_default(covariance_type, dtype, backend):
    tensors = problem(70, 20, 5, covariance_type, dtype)
    for got, want in zip(results(tensors, covariance_type, **PRECISE), results(tensors, covariance_type), strict=True):
        assert torch.equal(got, want)


def assert_error_is_as_documented(tensors, covariance_type):
    """2e-7 of the squared distance from the mixture's mean in standard deviations, twice what the docs say, above the default's error."""
    wide = [t.double() for t in tensors]
    truth, q = log_prob(*wide, covariance_type), responsibilities(*wide, covariance_type)
    x, logits, means, scale = wide
    std = (scale if covariance_type == "diag" else scale[:, None]).exp()
    distances = ((x[:, None] - logits.softmax(0) @ means) / std).square().sum(-1)
    allowed = 2e-7 * distances.gather(1, q.argmax(-1, keepdim=True)).squeeze(1)
    options = {"covariance_type": covariance_type}
    default = (vae_fast.mixture_log_prob(*tensors, **options) - truth).abs().max()
    error = (vae_fast.mixture_log_prob(*tensors, **options, **PRECISE) - truth).abs()
    assert (error <= allowed + default + 1e-6).all(), (error - allowed).max()
    found = vae_fast.mixture_responsibilities(*tensors, **options, **PRECISE)
    torch.testing.assert_close(found.double().sum(-1), torch.ones_like(truth), rtol=0, atol=2e-6)
    assert ((found - q).abs().amax(-1) <= allowed + 1e-5).all()


@pytest.mark.parametrize("size", [(300, 20, 2), (257, 65, 17), (130, 3, 128), (100, 17, 5)], ids=str)
@pytest.mark.parametrize("covariance_type", DIAGONAL)
def test_error_is_as_documented(covariance_type, size, device, backend):
    assert_error_is_as_documented(problem(*size, covariance_type, torch.float32, device), covariance_type)
    assert_error_is_as_documented(problem(*size, covariance_type, torch.float32, device, separation=100.0), covariance_type)


@pytest.mark.parametrize("covariance_type", DIAGONAL)
def test_an_offset_costs_nothing(covariance_type, device, backend):
    assert_error_is_as_documented(problem(200, 20, 16, covariance_type, torch.float32, device, offset=100.0), covariance_type)
    # a component that nothing belongs to moves no centre
    x, logits, means, scale = problem(200, 20, 16, covariance_type, torch.float32, device)
    logits[0], means[0] = -torch.inf, 1e6
    assert_error_is_as_documented([x, logits, means, scale], covariance_type)


@pytest.mark.parametrize("size", [(300, 40, 7), (700, 40, 40), (131, 68, 128)], ids=str)  # the last two: sums on tensor cores too
@pytest.mark.parametrize("covariance_type", DIAGONAL)
def test_gradients_are_those_of_the_default(covariance_type, size, device, backend):
    tensors = problem(*size, covariance_type, torch.float32, device)
    for got, want in zip(results(tensors, covariance_type, **PRECISE), results(tensors, covariance_type), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_out_of_range_is_computed_as_by_default(device, backend):
    x, logits, means, scale = problem(300, 40, 3, dtype=torch.float32, device=device)
    x[5], x[6, 1], x[7, 0] = 1e20, torch.inf, torch.nan
    for tensors in ([x, logits, means, scale], [x, logits, means.index_fill(0, torch.tensor([2], device=device), 1e30), scale]):
        value = vae_fast.mixture_log_prob(*tensors, **PRECISE)
        torch.testing.assert_close(value, vae_fast.mixture_log_prob(*tensors), rtol=1e-6, atol=2e-6, equal_nan=True)
        assert value.isnan().nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize("size", [(0, 20, 3), (1, 1, 1)], ids=str)
def test_small_sizes(size, device, backend):
    tensors = problem(*size, dtype=torch.float32, device=device)
    torch.testing.assert_close(vae_fast.mixture_log_prob(*tensors, **PRECISE), vae_fast.mixture_log_prob(*tensors), rtol=1e-6, atol=1e-6)


def test_second_derivatives(device, backend):
    tensors = [t.requires_grad_() for t in problem(5, 3, 2, dtype=torch.float32, device=device)]
    for f in (vae_fast.mixture_log_prob, lambda *t, **options: vae_fast.mixture_responsibilities(*t, **options).square()):
        found = []
        for options in ({}, PRECISE):
            grads = torch.autograd.grad(f(*tensors, **options).sum(), tensors, create_graph=True)
            found.append(torch.autograd.grad(sum(g.square().sum() for g in grads), tensors))
        for got, want in zip(*found, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@needs_kernels
def test_compiles_without_a_graph_break(device):
    tensors = problem(30, 20, 3, dtype=torch.float32, device=device)
    value, grads = value_and_grads(torch.compile(lambda *t: vae_fast.mixture_log_prob(*t, **PRECISE), fullgraph=True), tensors)
    want, want_grads = value_and_grads(lambda *t: vae_fast.mixture_log_prob(*t, **PRECISE), tensors)
    for got, expected in zip((value, *grads), (want, *want_grads), strict=True):
        torch.testing.assert_close(got, expected)


@needs_kernels
@pytest.mark.parametrize("name", ["mixture", "mixture_responsibilities", "mixture_statistics"])
def test_opcheck(name, device):
    tensors = problem(30, 20, 3, dtype=torch.float32, device=device)
    more = (None, None) if name == "mixture_statistics" else ()
    torch.library.opcheck(getattr(torch.ops.vae_fast, name).default, (*tensors, *more, "diag", "tf32x3"))


@needs_kernels
def test_ops_called_directly_refuse():
    """torch.ops.vae_fast has callers that skipped the Python checks."""
    ops = torch.ops.vae_fast
    good, full = problem(5, 3, 2, dtype=torch.float32), problem(5, 3, 2, "full", torch.float32)
    with pytest.raises(ValueError, match="precision='tf32': expected one of float32, tf32x3"):
        ops.mixture(*good, "diag", "tf32")
    with pytest.raises(ValueError, match="precision='tf32x3' with covariance='full'"):
        ops.mixture_responsibilities(*full, "full", "tf32x3")
    with pytest.raises(ValueError, match="Double: expected covariance diag or spherical and float32 or narrower"):
        ops.mixture_statistics(*(t.double() for t in good), None, None, "diag", "tf32x3")

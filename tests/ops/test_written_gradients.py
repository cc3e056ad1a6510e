"""Gradients that the forward pass of a grouped likelihood has written: every pass over the graph gets the right one, and its own."""

import pytest
import torch

import vae_fast
from vae_fast import _backend

X = torch.randint(256, (3, 4, 5, 3), dtype=torch.uint8)
CLASSES = torch.randint(7, (3, 4, 5))
COUNTS = torch.poisson(torch.ones(3, 9))
CASES = {
    "pixels": ((3, 4, 5, 20), lambda p: vae_fast.discretized_logistic_mixture_log_prob(X, p)),
    "pixels, channels first": (
        (3, 20, 4, 5),
        lambda p: vae_fast.discretized_logistic_mixture_log_prob(X.movedim(-1, 1), p, layout="nchw"),
    ),
    "classes": ((3, 4, 5, 7), lambda p: vae_fast.categorical_log_prob(CLASSES, p, event_dim=2)),
    "counts": ((3, 9), lambda p: vae_fast.multinomial_log_prob(COUNTS, p)),
    "sparse counts": ((3, 9), lambda p: vae_fast.multinomial_log_prob(COUNTS.to_sparse_csr(), p)),
}
every = pytest.mark.parametrize(("shape", "f"), CASES.values(), ids=CASES)
UPSTREAMS = {
    "ones": torch.ones(3),
    "one number": torch.tensor(-0.25).expand(3),
    "each": torch.tensor([1.0, 0.0, -3.0]),
    "strided": torch.tensor([2.0, 9.0, 0.5, 9.0, 1.0, 9.0])[::2],
}


@every
@pytest.mark.parametrize("upstream", UPSTREAMS.values(), ids=UPSTREAMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_upstream_gradients(shape, f, upstream, dtype, backend):
    p = torch.randn(shape).to(dtype).requires_grad_()
    wide = p.detach().double().requires_grad_()
    out, truth = f(p), f(wide)
    [grad] = torch.autograd.grad(out, p, upstream.to(out.dtype))
    want = torch.stack([torch.autograd.grad(truth[i], wide, retain_graph=True)[0][i] * upstream[i].double() for i in range(3)])
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-5
    torch.testing.assert_close(grad.double(), want, rtol=tolerance, atol=tolerance)


@every
def test_a_retained_graph_gives_the_same_gradient_again(shape, f, backend):
    p = torch.randn(shape, requires_grad=True)
    out = f(p)
    first, second, third = (torch.autograd.grad(out, p, 2.0 * torch.ones(3), retain_graph=True)[0] for _ in range(3))
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)
    assert torch.equal(second, third)
    first.zero_()  # it is the caller's
    assert torch.equal(torch.autograd.grad(out, p, 2.0 * torch.ones(3))[0], second)


@every
def test_a_gradient_of_the_gradient_beside_the_gradient(shape, f, backend):
    p = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    out = f(p)
    [grad] = torch.autograd.grad(out.sum(), p, create_graph=True)
    [curvature] = torch.autograd.grad(grad.square().sum(), p, retain_graph=True)
    assert curvature.abs().sum() > 0
    torch.testing.assert_close(torch.autograd.grad(out.sum(), p)[0], grad.detach())


@pytest.mark.skipif(_backend.C is None, reason="the extension was not built")
@every
def test_parameters_changed_in_between_are_refused(shape, f):
    p = torch.randn(shape, requires_grad=True)
    scaled = p * 1.0
    out = f(scaled)
    scaled.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()

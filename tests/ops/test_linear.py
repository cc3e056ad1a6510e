"""torch's linear layer with its products through the other library: the same numbers to rounding, the same everything else."""

import pytest
import torch
import torch.nn.functional as F
from oracle import leaves, needs_kernels

import vae_fast
from vae_fast import _backend

pytestmark = needs_kernels

#: below and above the size from which the other library is asked, and its edges
SHAPES = [((3,), 4, 5), ((), 7, 3), ((100,), 784, 500), ((128,), 128, 128), ((2, 65), 129, 131), ((127,), 128, 129), ((4096,), 33, 20)]


def value_and_grads(f, tensors, upstream):
    tensors = leaves(tensors)
    out = f(*tensors)
    return [out.detach(), *torch.autograd.grad(out, tensors, upstream.to(out.dtype))]


def problem(batch, k, n, bias=True):
    tensors = [torch.randn(*batch, k), torch.randn(n, k), torch.randn(n)][: 3 if bias else 2]
    return tensors, torch.randn(*batch, n, dtype=torch.float64)


def linear(x, w, b=None):
    return _backend.C.linear(x, w, b)


def rounding(x, w):
    """What float32 sums of so many products may be off by: sqrt(k) roundings of the sum of their sizes. TF32 is far above it."""
    k = x.shape[-1]
    return 2.0**-24 * (k**0.5 + 3.0) * (x.abs() @ w.abs().transpose(-1, -2))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_to_rounding(shape, bias):
    tensors, upstream = problem(*shape, bias)
    truth = value_and_grads(F.linear, [t.double() for t in tensors], upstream)
    got = value_and_grads(linear, tensors, upstream)
    x, w = (t.double() for t in tensors[:2])
    rows, g = x.reshape(-1, x.shape[-1]), upstream.reshape(-1, upstream.shape[-1])
    bounds = [rounding(x, w) + (1e-6 if bias else 0.0), rounding(upstream, w.t()), rounding(g.t(), rows.t())]
    bounds += [rounding(g.t(), torch.ones(1, len(g)).double())[:, 0]] * bias
    for value, want, bound in zip(got, truth, bounds, strict=True):
        assert value.dtype == torch.float32
        assert ((value.double() - want).abs() <= bound).all()


def test_large_products_go_to_the_other_library():
    """On float32 of some size; without it the layer would be torch's own, under another name."""
    x, w = torch.randn(100, 784), torch.randn(500, 784)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        linear(x, w)
        linear(x[:1], w[:3])
    names = [e.key for e in profile.key_averages()]
    assert any("mkldnn" in n for n in names) == torch.backends.mkldnn.is_available()
    assert "aten::mm" in names  # the small one


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 0, 0)])
def test_only_the_gradients_that_are_wanted(wanted):
    tensors, _ = problem((100,), 200, 120)
    mine, other = leaves(tensors, map(bool, wanted)), leaves(tensors, map(bool, wanted))
    a, b = linear(*mine), F.linear(*other)
    assert a.requires_grad == b.requires_grad == any(wanted)
    if any(wanted):
        a.square().sum().backward()
        b.square().sum().backward()
    for p, q in zip(mine, other, strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-2)


def test_layouts_and_expanded_gradients():
    (x, w, b), _ = problem((256,), 100, 90)
    odd = [x.t().contiguous().t(), torch.cat([w, w], 1)[:, ::2], b]
    odd[1] = torch.stack([w, w], 2)[..., 0]  # neither rows nor columns are dense
    upstream = torch.randn(1, 90).expand(256, 90)
    mine, other = leaves(odd), leaves([x, w, b])
    got = [linear(*mine), *torch.autograd.grad(linear(*mine), mine, upstream)]
    want = [F.linear(*other), *torch.autograd.grad(F.linear(*other), other, upstream)]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


def test_the_gradients_own_derivative():
    (x, w, b), _ = problem((150,), 150, 100)  # large enough for the other library, forward
    mine, other = leaves([x, w, b]), leaves([x, w, b])
    seconds = []
    for f, t in ((linear, mine), (F.linear, other)):
        first = torch.autograd.grad(f(*t).square().mean(), t[0], create_graph=True)[0]
        seconds.append(torch.autograd.grad(first.square().sum(), t[:2]))
    torch.testing.assert_close(*seconds, rtol=1e-4, atol=1e-6)


def test_what_it_is_not_for_is_torchs_own():
    x, w, b = torch.randn(4, 6), torch.randn(5, 6), torch.randn(5)
    for kind in (torch.float64, torch.bfloat16):
        args = [t.to(kind) for t in (x, w, b)]
        assert torch.equal(linear(*args), F.linear(*args))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, w, b).dtype == torch.bfloat16
    empty = linear(torch.randn(0, 6), w, b)
    assert empty.shape == (0, 5)
    got = torch.func.vmap(lambda row: linear(row, w, b))(x)
    torch.testing.assert_close(got, F.linear(x, w, b))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(x, w.t().contiguous())


BIASES = {
    "third": lambda b: b.repeat_interleave(3)[::3],
    "one": lambda b: b[:1].expand(len(b)),
    "offset": lambda b: torch.cat((b, b))[7::2][:100],
}


@pytest.mark.parametrize("lie", list(BIASES.values()), ids=list(BIASES))
def test_a_bias_of_any_stride(lie):
    """The other library reads one as if it were dense."""
    b = lie(torch.randn(200))
    x, w, dense = torch.randn(160, 256), torch.randn(len(b), 256), b.contiguous()
    torch.testing.assert_close(linear(x, w, b), F.linear(x, w, dense), rtol=1e-5, atol=1e-3)
    half = _backend.C.linear_bfloat16(x, w, b, w.bfloat16(), b.bfloat16())
    torch.testing.assert_close(half, _backend.C.linear_bfloat16(x, w, dense, w.bfloat16(), dense.bfloat16()), rtol=2e-2, atol=0.1)
    y = torch.rand(160, len(b))
    got = vae_fast.linear_bernoulli_log_prob(y, x, w, b)
    torch.testing.assert_close(got, vae_fast.bernoulli_log_prob(y, F.linear(x, w, dense)), rtol=1e-4, atol=1e-2)

"""Discretised logistics and their mixtures: values and gradients against the plain formulas in float64, edges, conventions, layouts."""

import math

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_refused, assert_within_contract, leaves, value_and_grads
from torch.autograd import gradcheck, gradgradcheck

import vae_fast

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
pixel_dims = pytest.mark.parametrize(("layout", "dim"), [("nhwc", -1), ("nchw", -3)], ids=["nhwc", "nchw"])
colours_of = pytest.mark.parametrize("colours", [1, 3], ids=["grey", "rgb"])


# --- the plain formulas -----------------------------------------------------------------------------------------------


def log_bin(y, loc, log_scale, bits=8):
    """The mass of a bin by survival or distribution functions, whichever end is nearer, in the tensors' own precision."""
    half, s = 1 / (2**bits - 1), log_scale.exp()
    a, b = (y + half - loc) / s, (y - half - loc) / s
    inner = torch.log(-torch.expm1((b - a).clamp(max=-1e-300)))
    middle = F.logsigmoid(a) + F.logsigmoid(-b) + inner
    return torch.where(y < -1 + half, F.logsigmoid(a), torch.where(y > 1 - half, F.logsigmoid(-b), middle))


def published_log_bin(y, loc, log_scale, bits, last):
    """As the published implementations have it: a difference of two sigmoids, or the density where that is tiny."""
    half, inverse = 1 / (2**bits - 1), (-log_scale).exp()
    plus, minus, mid = inverse * (y - loc + half), inverse * (y - loc - half), inverse * (y - loc)
    delta = plus.sigmoid() - minus.sigmoid()
    density = mid - log_scale - 2 * F.softplus(mid) - math.log((2**bits - 1) / 2)
    inside = torch.where(delta > 1e-5, delta.clamp(min=1e-12).log(), density)
    return torch.where(y < -0.999, plus - F.softplus(plus), torch.where(y > last, -F.softplus(minus), inside))


def mixture(x, params, dim, bin_of=log_bin, floor=-7.0):
    """x in [0, 1]."""
    y = 2 * x.movedim(dim, -1) - 1
    p = params.movedim(dim, -1)
    colours = y.shape[-1]
    k = p.shape[-1] // (10 if colours == 3 else 3)
    logits, rest = p[..., :k], p[..., k:].unflatten(-1, (colours, -1))
    total = logits.log_softmax(-1)
    for c in range(colours):
        loc, log_scale = rest[..., c, :k], rest[..., c, k : 2 * k].clamp(min=floor)
        if c == 1:
            loc = loc + rest[..., 0, 2 * k :].tanh() * y[..., :1]
        if c == 2:
            loc = loc + rest[..., 1, 2 * k :].tanh() * y[..., :1] + rest[..., 2, 2 * k :].tanh() * y[..., 1:2]
        total = total + bin_of(y[..., c : c + 1], loc, log_scale)
    return total.logsumexp(-1).sum((-1, -2))


def levels_of(shape, bits=8, device="cpu"):
    k = torch.randint(0, 2**bits, shape, dtype=torch.uint8)
    k.view(-1)[: min(2, k.numel())] = torch.tensor([0, 2**bits - 1], dtype=torch.uint8)[: k.numel()]
    return k.to(device)


def problem(batch, pixels, components, colours, dim, dtype=torch.float64, device="cpu", bits=8):
    """Levels, and parameters among which some components explain the pixel and some do not."""
    x = levels_of((*batch, *pixels, colours), bits)
    params = torch.randn(*batch, *pixels, components * (10 if colours == 3 else 3)) * 0.7
    params[..., components:] -= 0.5
    return x.movedim(-1, dim).to(device), params.movedim(-1, dim).to(device, dtype)


# --- element by element -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 3, 5, 8])
def test_the_probabilities_of_all_levels_sum_to_one(bits, device, backend):
    count = 2**bits
    x = torch.arange(count, dtype=torch.uint8, device=device)[:, None]
    for loc, log_scale in ((0.0, 0.0), (0.3, -3.0), (-1.5, -1.0), (1.0, -7.0), (0.1, 4.0)):
        parameters = [torch.full((1,), v, dtype=torch.float64, device=device) for v in (loc, log_scale)]
        p = vae_fast.discretized_logistic_log_prob(x, *parameters, bits=bits).exp()
        assert p.sum().item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("bits", [2, 8])
def test_bytes_are_levels(bits, device, backend):
    k = levels_of((5, 40), bits, device)
    loc, log_scale = torch.randn(5, 40, device=device), torch.randn(5, 40, device=device) - 2
    got = vae_fast.discretized_logistic_log_prob(k, loc, log_scale, bits=bits)
    same = vae_fast.discretized_logistic_log_prob(k.double() / (2**bits - 1), loc.double(), log_scale.double(), bits=bits)
    torch.testing.assert_close(got.double(), same, rtol=2e-5, atol=2e-5)
    truth = log_bin(2 * k.double() / (2**bits - 1) - 1, loc.double(), log_scale.double(), bits).sum(-1)
    torch.testing.assert_close(same, truth, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shape", [(0, 7), (1, 1), (33, 1000)], ids=str)
def test_values_and_gradients_of_elements(shape, device, backend):
    x = levels_of(shape, device=device).double() / 255
    loc, log_scale = torch.randn(shape, dtype=torch.float64, device=device), torch.randn(shape, dtype=torch.float64, device=device) - 1.5
    upstream = torch.randn(shape[0], dtype=torch.float64, device=device)
    for dtype, slack in ((torch.float64, 1e-11), (torch.float32, 1e-6)):
        tensors = [t.to(dtype) for t in (x, loc, log_scale)]
        value, grads = value_and_grads(vae_fast.discretized_logistic_log_prob, tensors, upstream)
        exact = [t.double() for t in tensors]
        truth, want = value_and_grads(lambda x, m, s: log_bin(2 * x - 1, m, s).sum(-1), exact, upstream)
        plain, plain_grads = value_and_grads(lambda x, m, s: log_bin(2 * x - 1, m, s).sum(-1), tensors, upstream)
        single = dtype == torch.float32
        assert_within_contract(value, truth, plain if single else None, slack)
        for g, w, formula in zip(grads, want, plain_grads, strict=True):
            error, allowed = (g.double() - w).abs(), slack * (1 + w.abs())
            assert (error <= allowed + (3 * (formula.double() - w).abs().amax(-1, True) if single else 0)).all()


def test_gradcheck_of_elements(device, backend):
    x = torch.tensor([[0.0, 0.2, 0.5, 1.0]], dtype=torch.float64, device=device)
    loc = torch.tensor([[-0.9, 0.1, 0.4, 0.8]], dtype=torch.float64, device=device, requires_grad=True)
    log_scale = torch.tensor([[-1.0, -3.0, 0.5, -2.0]], dtype=torch.float64, device=device, requires_grad=True)
    assert gradcheck(lambda m, s: vae_fast.discretized_logistic_log_prob(x, m, s), (loc, log_scale))
    assert gradgradcheck(lambda m, s: vae_fast.discretized_logistic_log_prob(x, m, s), (loc, log_scale))


@pytest.mark.parametrize("log_scale", [-80.0, -40.0, 0.0, 40.0, 80.0])
@pytest.mark.parametrize("loc", [0.0, 0.3, -1e4, 1e4])
def test_extremes(loc, log_scale, device, backend):
    """float32 and float64 agree however narrow or wide the logistic; nothing is NaN, and only what is out of range is infinite."""
    x = torch.tensor([0, 1, 77, 130, 254, 255], dtype=torch.uint8, device=device)[:, None]
    m = torch.full((1,), loc, device=device)
    s = torch.full((1,), log_scale, device=device)
    value, grads = value_and_grads(lambda m, s: vae_fast.discretized_logistic_log_prob(x, m.expand(6, 1), s.expand(6, 1)), [m, s])
    truth = log_bin(2 * x.double() / 255 - 1, m.double(), s.double()).sum(-1)
    assert not value.isnan().any()
    assert not any(g.isnan().any() for g in grads)
    inside = truth.abs() < 1e36
    torch.testing.assert_close(value[inside].double(), truth[inside], rtol=3e-5, atol=1e-6)
    assert (value[~inside] < -1e36).all()


# --- mixtures ---------------------------------------------------------------------------------------------------------


@pixel_dims
@colours_of
@pytest.mark.parametrize(
    "size", [((0,), (4, 4), 3), ((1,), (1, 1), 1), ((), (3, 5), 2), ((3,), (16, 9), 10), ((2, 2), (5, 7), 33)], ids=str
)
def test_values_and_gradients(size, colours, layout, dim, device, backend):
    for dtype in (torch.float32, torch.float64):
        x, params = problem(*size, colours, dim, dtype, device)
        upstream = torch.randn(size[0], dtype=dtype, device=device)

        def ours(p, x=x):
            return vae_fast.discretized_logistic_mixture_log_prob(x, p, layout=layout)

        def formula_of(p, x=x):
            return mixture(x.to(p.dtype) / 255, p, dim)

        value, [grad] = value_and_grads(ours, [params], upstream)
        assert (value.dtype, value.shape, grad.dtype, grad.shape) == (dtype, size[0], dtype, params.shape)
        truth, [want] = value_and_grads(formula_of, [params.double()], upstream.double())
        plain, [formula] = value_and_grads(formula_of, [params], upstream)
        single = dtype == torch.float32
        assert_within_contract(value, truth, plain if single else None, 1e-6 if single else 1e-12)
        slack = 1e-11 if not single else 2 * (formula.double() - want).abs().max().item() + 2e-6 if want.numel() else 0
        assert ((grad.double() - want).abs() <= slack * (1 + want.abs())).all()


@pytest.mark.parametrize(("convention", "last"), [("vdvae", 0.999), ("nvae", 0.99)])
@pytest.mark.parametrize("bits", [5, 8])
@pixel_dims
def test_the_values_of_published_implementations(layout, dim, bits, convention, last, device, backend):
    x, params = problem((3,), (6, 5), 4, 3, dim, torch.float64, device, bits)
    params[:, ::2, ::2] *= 4  # far off and narrow: bins of less than 1e-5 too
    unit = x.double() / (2**bits - 1)

    def plain(p):
        return mixture(unit, p, dim, lambda y, m, s: published_log_bin(y, m, s, bits, last))

    def ours(p):
        return vae_fast.discretized_logistic_mixture_log_prob(x, p, bits=bits, layout=layout, convention=convention)

    value, [grad] = value_and_grads(ours, [params])
    truth, [want] = value_and_grads(plain, [params])
    torch.testing.assert_close(value, truth, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grad, want, rtol=1e-5, atol=1e-6)  # a difference of sigmoids has lost digits at 1e-5
    exact = vae_fast.discretized_logistic_mixture_log_prob(x, params, bits=bits, layout=layout)
    assert not torch.allclose(exact, value, rtol=1e-9)


def test_a_bin_of_nvae_holds_two_levels(device, backend):
    x = torch.tensor([254, 255], dtype=torch.uint8, device=device).reshape(2, 1, 1, 1)
    params = torch.tensor([0.0, 0.5, -1.0], dtype=torch.float64, device=device).reshape(1, 1, 1, 3)
    for convention in ("exact", "vdvae", "nvae"):
        a, b = vae_fast.discretized_logistic_mixture_log_prob(x, params, convention=convention).exp().tolist()
        tail = torch.sigmoid(torch.tensor((0.5 - (2 * 253.5 / 255 - 1)) / math.exp(-1.0), dtype=torch.float64)).item()
        assert (a == pytest.approx(tail, rel=1e-9)) == (convention == "nvae")
        assert b < tail


@pixel_dims
@colours_of
def test_gradcheck(colours, layout, dim, device, backend):
    x, params = problem((2,), (2, 1), 2, colours, dim, torch.float64, device)

    def f(p):
        return vae_fast.discretized_logistic_mixture_log_prob(x, p, layout=layout)

    assert gradcheck(f, leaves([params]))
    assert gradgradcheck(f, leaves([params]))


def test_log_scales_are_floored(device, backend):
    x, params = problem((2,), (3, 3), 2, 3, -1, torch.float64, device)
    params[..., 4:6] = torch.tensor([-7.0, -30.0], dtype=torch.float64, device=device)  # log scales of the first colour
    value, [grad] = value_and_grads(lambda p: vae_fast.discretized_logistic_mixture_log_prob(x, p), [params])
    raised = params.clone()
    raised[..., 4:6] = -7.0
    torch.testing.assert_close(vae_fast.discretized_logistic_mixture_log_prob(x, raised), value, rtol=1e-13, atol=0)
    assert not grad[..., 4:6].any()
    assert grad[..., 10:12].any(-1).any(0).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("x_dtype", [torch.uint8, *FLOATS], ids=str)
def test_dtypes(x_dtype, dtype, device, backend):
    x, params = problem((4,), (3, 3), 3, 3, -1, torch.float64, device)
    x = x if x_dtype == torch.uint8 else (x.double() / 255).to(x_dtype)
    params = params.to(dtype)
    value, [grad] = value_and_grads(lambda p: vae_fast.discretized_logistic_mixture_log_prob(x, p), [params])
    unit = x.double() / 255 if x_dtype == torch.uint8 else x.double()
    truth, [want] = value_and_grads(lambda p: mixture(unit, p, -1), [params.double()])
    double = torch.float64 in (dtype, x_dtype)
    assert value.dtype == (torch.float64 if double else torch.float32)
    assert_within_contract(value, truth, slack=1e-11 if double else 2e-6)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad.double(), want, rtol=2 * torch.finfo(dtype).eps + 2e-5, atol=2e-5)


LAYOUTS = {
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "sliced batch": lambda t: torch.stack([t, t], 1)[:, 0],
    "transposed pixels": lambda t: t.mT.contiguous().mT,
    "every second": lambda t: t.repeat_interleave(2, -1)[..., ::2],
}


@pytest.mark.parametrize("arrange", LAYOUTS.values(), ids=LAYOUTS)
@pixel_dims
def test_memory_layouts(layout, dim, arrange, device, backend):
    x, params = problem((3,), (4, 4), 2, 3, dim, torch.float32, device)
    want, [want_grad] = value_and_grads(
        lambda p: vae_fast.discretized_logistic_mixture_log_prob(x, p, layout=layout), [params.contiguous()]
    )
    arranged = arrange(params)
    torch.testing.assert_close(arranged, params, rtol=0, atol=0)
    value, [grad] = value_and_grads(lambda p: vae_fast.discretized_logistic_mixture_log_prob(arrange(x), p, layout=layout), [arranged])
    torch.testing.assert_close(value, want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad, want_grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("x_batch", "batch"), [((2, 3), (3,)), ((3,), (2, 3)), ((), (4,)), ((4,), ()), ((2, 1), (1, 3))], ids=str)
def test_batch_dimensions_broadcast(x_batch, batch, device, backend):
    x, _ = problem(x_batch, (3, 2), 2, 3, -1, device=device)
    _, params = problem(batch, (3, 2), 2, 3, -1, device=device)
    wide = torch.broadcast_shapes(x_batch, batch)
    upstream = torch.randn(wide, dtype=torch.float64, device=device)
    value, [grad] = value_and_grads(lambda p: vae_fast.discretized_logistic_mixture_log_prob(x, p), [params], upstream)
    truth, [want] = value_and_grads(
        lambda p: mixture((x.double() / 255).expand(*wide, 3, 2, 3), p.expand(*wide, 3, 2, 20), -1), [params], upstream
    )
    torch.testing.assert_close(value, truth, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad, want, rtol=1e-10, atol=1e-10)


def test_one_value_for_every_pixel(device, backend):
    """Parameters expanded over pixels and components have no memory of their own."""
    x, _ = problem((2,), (4, 4), 1, 1, -1, device=device)
    p = torch.tensor(-0.5, dtype=torch.float64, device=device)
    value, [grad] = value_and_grads(lambda p: vae_fast.discretized_logistic_mixture_log_prob(x, p.expand(2, 4, 4, 3)), [p])
    truth, [want] = value_and_grads(lambda p: mixture(x.double() / 255, p.expand(2, 4, 4, 3), -1), [p])
    torch.testing.assert_close(value, truth)
    torch.testing.assert_close(grad, want)


def test_large_logits_and_weights_of_zero(device, backend):
    x, params = problem((4,), (3, 3), 3, 3, -1, torch.float32, device)
    params[..., 1] = 1e4
    params[..., 2] = -math.inf
    value, [grad] = value_and_grads(lambda p: vae_fast.discretized_logistic_mixture_log_prob(x, p), [params])
    kept = torch.cat([params[..., 3:].unflatten(-1, (9, 3))[..., 1].flatten(-1)], -1)
    want = vae_fast.discretized_logistic_mixture_log_prob(x, torch.cat([torch.zeros_like(kept[..., :1]), kept], -1))
    torch.testing.assert_close(value, want, rtol=2e-6, atol=1e-5)
    assert grad.isfinite().all()
    assert not grad[..., 5::3].any()


def test_nan_stays_in_its_image(device, backend):
    x, params = problem((5,), (3, 3), 2, 3, -1, torch.float32, device)
    clean, [clean_grad] = value_and_grads(lambda p: vae_fast.discretized_logistic_mixture_log_prob(x, p), [params])
    for place in (0, 3, 7, 19):
        dirty = params.clone()
        dirty[2, 1, 1, place] = math.nan
        value, [grad] = value_and_grads(lambda p: vae_fast.discretized_logistic_mixture_log_prob(x, p), [dirty])
        assert value[2].isnan()
        others = [0, 1, 3, 4]
        torch.testing.assert_close(value[others], clean[others], rtol=0, atol=0)
        torch.testing.assert_close(grad[others], clean_grad[others], rtol=0, atol=0)


# --- transforms -------------------------------------------------------------------------------------------------------


@pixel_dims
def test_vmap_and_grad(layout, dim, device, backend):
    x, params = problem((3,), (2, 2), 2, 3, dim, torch.float64, device)

    def f(x, p):
        return vae_fast.discretized_logistic_mixture_log_prob(x, p, layout=layout)

    torch.testing.assert_close(torch.vmap(f)(x, params), f(x, params))
    _, [want] = value_and_grads(lambda p: f(x, p), [params])
    torch.testing.assert_close(torch.vmap(torch.func.grad(lambda p, x: f(x, p)))(params, x), want)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled(compiler, device):
    x, params = problem((3,), (4, 4), 2, 3, -1, torch.float32, device)
    f = torch.compile(lambda p: 2 * vae_fast.discretized_logistic_mixture_log_prob(x, p * 1.5), fullgraph=True, backend=compiler)
    value, [grad] = value_and_grads(f, [params])
    want, [want_grad] = value_and_grads(lambda p: 2 * vae_fast.discretized_logistic_mixture_log_prob(x, p * 1.5), [params])
    torch.testing.assert_close(value, want, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(grad, want_grad, rtol=2e-6, atol=2e-6)


def test_threads_change_nothing(device):
    x, params = problem((3,), (40, 40), 5, 3, -1, torch.float32, device)
    results = []
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(value_and_grads(lambda p: vae_fast.discretized_logistic_mixture_log_prob(x, p), [params]))
    finally:
        torch.set_num_threads(threads)
    for value, [grad] in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(grad, results[0][1][0])


# --- what is refused --------------------------------------------------------------------------------------------------

X, P = torch.zeros(2, 4, 4, 3), torch.zeros(2, 4, 4, 20)
REFUSED = {
    "layout": (X, P, {"layout": "nhw"}, ValueError, ["layout='nhw'", "'nhwc', 'nchw'"]),
    "convention": (X, P, {"convention": "pixelcnn"}, ValueError, ["convention='pixelcnn'", "'exact', 'vdvae', 'nvae'"]),
    "bits 0": (X, P, {"bits": 0}, ValueError, ["bits=0"]),
    "bits 9": (X, P, {"bits": 9}, ValueError, ["bits=9", "1 to 8"]),
    "bits real": (X, P, {"bits": 8.0}, TypeError, ["bits=8.0", "got float"]),
    "two colours": (X[..., :2], P, {}, ValueError, ["x has shape (2, 4, 4, 2)", "(*batch, H, W, C)", "1 or 3 colours"]),
    "layout of x": (X, P, {"layout": "nchw"}, ValueError, ["x has shape (2, 4, 4, 3)", "(*batch, C, H, W)", "layout='nchw'"]),
    "parameters": (X, P[..., :19], {}, ValueError, ["params has shape (2, 4, 4, 19)", "multiple of 10"]),
    "no parameters": (X, P[..., :0], {}, ValueError, ["params has shape (2, 4, 4, 0)", "multiple of 10"]),
    "pixels": (X, P[:, :3], {}, ValueError, ["same H and W", "(2, 3, 4, 20)"]),
    "batch": (X, torch.zeros(3, 4, 4, 20), {}, ValueError, ["batch dimensions", "x has shape (2,)", "params has shape (3,)"]),
    "int64": (X.long(), P, {}, TypeError, ["x has dtype int64"]),
    "integer params": (X, P.long(), {}, TypeError, ["params has dtype int64"]),
    "gradient of x": (X.clone().requires_grad_(), P, {}, ValueError, ["x requires grad", "detach"]),
    "device": (X.to("meta"), P, {}, ValueError, ["x is on meta", "params is on cpu"]),
    "values": (X + 1.5, P, {"check_data": True}, ValueError, ["x[0, 0, 0, 0] = 1.5", "values in [0, 1]"]),
    "no level": (X.byte() + 32, P, {"bits": 5, "check_data": True}, ValueError, ["x holds 32", "levels from 0 to 31"]),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused(case, backend):
    x, params, options, kind, words = case
    assert_refused(lambda: vae_fast.discretized_logistic_mixture_log_prob(x, params, **options), kind, words)


def test_a_byte_that_is_no_level_is_named_on_request(backend):
    x, m = torch.tensor([[3, 8]], dtype=torch.uint8), torch.zeros(1, 2)
    assert vae_fast.discretized_logistic_log_prob(x - 1, m, m, bits=3, check_data=True).shape == (1,)
    assert_refused(
        lambda: vae_fast.discretized_logistic_log_prob(x, m, m, bits=3, check_data=True), ValueError, ["x holds 8", "levels from 0 to 7"]
    )

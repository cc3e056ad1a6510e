"""Bounds of a scale: values, gradients of every mode at its edges, every function that takes them, and what is refused."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from oracle import SCALES, assert_refused, leaves, needs_kernels, value_and_grads
from test_mixture_gradients import peak_growth
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap

import vae_fast

MODES = ("clamp", "straight_through", "softclip", "tanh")
modes = pytest.mark.parametrize("mode", MODES)
scales = pytest.mark.parametrize("scale", SCALES)


class StraightThrough(torch.autograd.Function):
    """A clamp whose gradient passes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(t, low, high):
        return t.clamp(low, high)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g, None, None


def plain(t, bounds):
    """The modes in the words of torch."""
    low, high, mode = bounds
    if mode == "clamp":
        return t.clamp(low, high)
    if mode == "straight_through":
        return StraightThrough.apply(t, low, high)
    if mode == "softclip":
        upper = high - F.softplus(high - t, threshold=40)
        return low + F.softplus(upper - low, threshold=40)
    return (low + high) / 2 + (high - low) / 2 * torch.tanh((t - (low + high) / 2) / ((high - low) / 2))


def bounds_of(scale, mode):
    """Bounds that about a third of the scales below lie outside of."""
    return (0.5, 1.4, mode) if scale in ("std", "var") else (-0.9, 0.6, mode)


def problem(scale, shape=(5, 37), dtype=torch.float64, device="cpu"):
    """x, mu, a scale of which some lie far out, and noise."""
    x, mu, s, noise = (torch.randn(shape, dtype=torch.float64) for _ in range(4))
    s = 2 * s + (1.0 if scale in ("std", "var") else 0.0)
    if s.numel() > 8:
        s.view(-1)[:8] = torch.tensor([1e4, -1e4, 1e30, -1e30, 50.0, -50.0, 0.0, 1e-30])
    return [t.to(device, dtype) for t in (x, mu, s, noise)]


# Each takes (x, mu, scale, noise), the form and the bounds.
CALLS = {
    "kl": lambda x, m, s, e, **kw: vae_fast.gaussian_kl(m, s, **kw),
    "kl of a prior": lambda x, m, s, e, **kw: vae_fast.gaussian_kl(m, s, x, 0.8, free_bits=0.2, **kw),
    "sample": lambda x, m, s, e, **kw: vae_fast.reparameterize(m, s, noise=e, **kw),
    "samples": lambda x, m, s, e, **kw: vae_fast.reparameterize(m, s, noise=torch.stack([e, -e, x]), num_samples=3, **kw).sum(0),
    "sample and kl": lambda x, m, s, e, **kw: torch.cat(
        [t.reshape(len(m), -1) for t in vae_fast.reparameterize_with_kl(m, s, noise=e, **kw)], -1
    ),
    "sample and kl of a prior": lambda x, m, s, e, **kw: torch.cat(
        [t.reshape(len(m), -1) for t in vae_fast.reparameterize_with_kl(m, s, x, 0.8, noise=e, **kw)], -1
    ),
    "gaussian": lambda x, m, s, e, **kw: vae_fast.gaussian_log_prob(x, m, s, **kw),
    "gaussian by element": lambda x, m, s, e, **kw: vae_fast.gaussian_log_prob(x, m, s, event_dim=0, **kw),
    "laplace": lambda x, m, s, e, **kw: vae_fast.laplace_log_prob(x, m, s, **kw),
    "log_normal": lambda x, m, s, e, **kw: vae_fast.log_normal_log_prob(x.exp(), m, s, **kw),
    "student_t": lambda x, m, s, e, **kw: vae_fast.student_t_log_prob(x, e.exp(), m, s, **kw),
    "elbo": lambda x, m, s, e, **kw: vae_fast.elbo(x.sigmoid(), e, m, s, **kw),
    "loss": lambda x, m, s, e, **kw: vae_fast.elbo_loss(x.sigmoid(), e, m, s, beta=0.7, free_bits=0.1, **kw),
    "loss of a function": lambda x, m, s, e, **kw: vae_fast.elbo_loss(x, e, m, s, likelihood=vae_fast.gaussian_log_prob, **kw),
}
calls = pytest.mark.parametrize("call", CALLS)


@scales
@modes
@calls
def test_values_and_gradients(call, mode, scale, device, backend):
    bounds, f = bounds_of(scale, mode), CALLS[call]
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 3e-5)):
        tensors = problem(scale, dtype=dtype, device=device)
        value, grads = value_and_grads(functools.partial(f, scale=scale, scale_bounds=bounds), tensors, wanted=[False, True, True, False])
        wide = [t.double() for t in tensors]
        truth, want = value_and_grads(
            lambda x, m, s, e: f(x, m, plain(s, bounds), e, scale=scale),
            wide,
            wanted=[False, True, True, False],
        )
        assert value.dtype == dtype
        torch.testing.assert_close(value.double(), truth, rtol=tolerance, atol=tolerance)
        for g, w in zip(grads[1:3], want[1:3], strict=True):
            assert g.dtype == dtype
            torch.testing.assert_close(g.double(), w, rtol=tolerance, atol=tolerance * max(1.0, w.abs().max().item()))


@modes
def test_the_discretised_logistic(mode, device, backend):
    bounds = (-3.0, 0.5, mode)
    x, loc, s, _ = problem("log_std", device=device)
    x = x.sigmoid()
    found = value_and_grads(lambda m, s: vae_fast.discretized_logistic_log_prob(x, m, s, scale_bounds=bounds), [loc, s])
    want = value_and_grads(lambda m, s: vae_fast.discretized_logistic_log_prob(x, m, plain(s, bounds)), [loc, s])
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-10)


@modes
@pytest.mark.parametrize("likelihood", ["gaussian", "laplace", "log_normal", "student_t", "discretized_logistic"])
def test_bounds_of_the_decoders_scale(likelihood, mode, device, backend):
    bounds, both = (-0.9, 0.6, mode), {"event_dim": 1, "likelihood": likelihood}
    x, loc, s, e = problem("log_std", device=device)
    x = x.sigmoid()
    mu, logvar = torch.randn(5, 3, dtype=torch.float64, device=device), torch.randn(5, 3, dtype=torch.float64, device=device)

    def given(loc, s):
        return (e.exp(), loc, s) if likelihood == "student_t" else (loc, s)

    for shape in ((5, 37), (37,), (1, 1)):
        small = s[tuple(slice(0, n) for n in shape)] if len(shape) == 2 else s[0]
        ours = functools.partial(vae_fast.elbo_loss, scale_bounds=(-1.0, 0.2, "tanh"), recon_scale_bounds=bounds, **both)
        found = value_and_grads(lambda loc, s, m, v: ours(x, given(loc, s), m, v), [loc, small, mu, logvar])  # noqa: B023
        want = value_and_grads(
            lambda loc, s, m, v: vae_fast.elbo_loss(x, given(loc, plain(s, bounds)), m, plain(v, (-1.0, 0.2, "tanh")), **both),
            [loc, small, mu, logvar],
        )
        torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("at", [-1.0, 0.5])
@modes
def test_derivatives_on_the_edges(mode, at, device, backend):
    """torch.clamp's convention: the edges belong to the inside."""
    s = torch.full((1, 2), at, dtype=torch.float64, device=device, requires_grad=True)
    z = vae_fast.reparameterize(torch.zeros_like(s), s, noise=torch.ones_like(s), scale="log_std", scale_bounds=(-1.0, 0.5, mode))
    z.sum().backward()
    t = s.detach().clone().requires_grad_()
    plain(t, (-1.0, 0.5, mode)).exp().sum().backward()
    torch.testing.assert_close(s.grad, t.grad, rtol=1e-12, atol=0.0)
    if mode in ("clamp", "straight_through"):
        torch.testing.assert_close(s.grad, torch.full_like(s, math.exp(at)))


@modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_scales_stay_between_the_bounds(mode, dtype, device, backend):
    s = torch.tensor([[1e4, -1e4, 3e38, -3e38, 100.0, -100.0]], dtype=dtype, device=device, requires_grad=True)
    z = vae_fast.reparameterize(torch.zeros_like(s), s, noise=torch.ones_like(s), scale="log_std", scale_bounds=(-2.0, 1.0, mode))
    z.backward(torch.ones_like(z))
    over = math.log1p(math.exp(-3.0)) if mode == "softclip" else 0.0
    assert z.min() >= math.exp(-2.0) * (1 - 1e-6)
    assert z.max() <= math.exp(1.0 + over) * (1 + 1e-6)
    if mode == "straight_through":
        torch.testing.assert_close(s.grad, z.detach())
    else:
        assert s.grad.abs().max() < 1e-30


@modes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_and_layouts(mode, dtype, device, backend):
    """Read in their own dtype and order; computed, and rounded once, in float32."""
    bounds = (-0.9, 0.6, mode)
    _, mu, s, _ = problem("logvar", (6, 9, 5), torch.float32, device)
    s = s.clamp(-30, 30)
    for layout in (lambda t: t, lambda t: t.transpose(0, 2).contiguous().transpose(0, 2), lambda t: t[:, :1], lambda t: t[0, 0, 0]):
        m, given = mu.to(dtype), layout(s.to(dtype))
        found = value_and_grads(functools.partial(vae_fast.gaussian_kl, scale_bounds=bounds, event_dim=2), [m, given])
        want = value_and_grads(lambda m, s: vae_fast.gaussian_kl(m, plain(s, bounds), event_dim=2), [m.double(), given.double()])
        torch.testing.assert_close(found[0].double(), want[0], rtol=1e-5, atol=1e-5)
        for g, w in zip(found[1], want[1], strict=True):
            assert g.dtype == dtype
            torch.testing.assert_close(
                g.double(), w, rtol=2 * torch.finfo(dtype).eps, atol=1e-7 + 1e-2 * torch.finfo(dtype).eps * w.abs().max()
            )


@modes
@scales
def test_gradcheck(scale, mode, device, backend):
    bounds = bounds_of(scale, mode)
    x, mu, s, noise = (t[:2, 10:13].contiguous() for t in problem(scale, device=device))
    s = s.sign() * (s.abs() % 3.0)  # not where tanh and softclip are flat to the last bit
    outside = s.add(1e-3).lt(bounds[0]) | s.sub(1e-3).gt(bounds[1])
    if mode == "straight_through":  # whose gradient is not that of its value
        s = torch.where(outside, torch.full_like(s, 0.55), s)
    [mu, s] = leaves([mu, s])

    def f(mu, s):
        z, kl = vae_fast.reparameterize_with_kl(mu, s, noise=noise, scale=scale, scale_bounds=bounds)
        return z, kl, vae_fast.gaussian_log_prob(x, mu, s, scale=scale, scale_bounds=bounds)

    assert gradcheck(f, [mu, s])
    assert gradgradcheck(f, [mu, s])
    assert gradgradcheck(lambda m, s: vae_fast.elbo_loss(x.sigmoid(), noise, m, s, scale=scale, scale_bounds=bounds), [mu, s])


@modes
def test_compiled_and_mapped_and_under_autocast(mode, device):
    bounds = (-0.9, 0.6, mode)
    x, mu, s, noise = problem("logvar", dtype=torch.float32, device=device)

    def f(mu, s):
        z, kl = vae_fast.reparameterize_with_kl(mu, s, noise=noise, scale_bounds=bounds)
        loss = vae_fast.elbo_loss(x, (z, s), mu, s, likelihood="gaussian", scale_bounds=bounds, recon_scale_bounds=bounds)
        return loss + kl.sum()

    want = value_and_grads(f, [mu, s])
    torch.testing.assert_close(value_and_grads(torch.compile(f, fullgraph=True, backend="aot_eager"), [mu, s]), want, rtol=1e-5, atol=1e-5)
    with torch.autocast(device, torch.bfloat16):
        torch.testing.assert_close(value_and_grads(f, [mu, s]), want, rtol=0.0, atol=0.0)
    rows = vmap(lambda m, s: vae_fast.gaussian_kl(m, s, scale_bounds=bounds))(mu, s)
    torch.testing.assert_close(rows, vae_fast.gaussian_kl(mu, s, scale_bounds=bounds), rtol=1e-5, atol=1e-5)


@needs_kernels
@modes
def test_opcheck(mode, device):
    ops, x = torch.ops.vae_fast, torch.randn(3, 5, dtype=torch.float64, device=device)
    mu, s = leaves([x, 2 * x.flip(0)])
    name = f"|{mode}|-0.5|0.75"
    torch.library.opcheck(ops.term.default, ([mu, s], "kl.logvar" + name, [-math.inf], None, 1))
    torch.library.opcheck(ops.reparameterize.default, ([mu, s], x, None, "logvar" + name, 0))
    settings = ("gaussian.logvar" + name, [], "kl.logvar" + name, -math.inf, None, 0.5, None, 1, 1)
    torch.library.opcheck(ops.elbo.default, ([x, mu, s], [mu, s], *settings))


@needs_kernels
@pytest.mark.parametrize(
    "name", ["kl.logvar|clip|0|1", "kl.logvar|clamp|0", "kl.logvar|clamp|1|0", "bernoulli_logits.none|clamp|0|1", "kl.logvar|clamp|0|inf"]
)
def test_the_kernels_refuse_other_names(name, device):
    x = torch.zeros(2, 3, device=device)
    params = [-math.inf] if name.startswith("kl") else []
    with pytest.raises(ValueError, match="expected"):
        torch.ops.vae_fast.term([x, x], name, params, None, 1)


@needs_kernels
@modes
def test_no_pass_over_memory(mode, device):
    """Neither a bounded copy of the scale is made nor one of its gradient."""
    mu, s = torch.randn(2, 4096, 1024, device=device)
    with torch.no_grad():
        vae_fast.gaussian_kl(mu, s)
        assert peak_growth(lambda: vae_fast.gaussian_kl(mu, s, scale_bounds=(-1.0, 1.0, mode)), device) < s.nbytes / 4
    mu.requires_grad_(), s.requires_grad_()
    kl = vae_fast.gaussian_kl(mu, s, scale_bounds=(-1.0, 1.0, mode), reduction="sum")
    assert peak_growth(kl.backward, device) < 2.3 * s.nbytes


def test_threads_and_long_rows(device):
    """A row that threads share, and one element to a row."""
    for shape in ((2, 300_000), (70_001, 1)):
        mu, s = torch.randn(2, *shape, device=device)
        found = vae_fast.gaussian_kl(mu, s, scale_bounds=(-0.5, 0.5, "tanh"), event_dim=1)
        want = vae_fast.gaussian_kl(mu.double(), plain(s.double(), (-0.5, 0.5, "tanh")), event_dim=1)
        torch.testing.assert_close(found.double(), want, rtol=2e-6, atol=2e-6)


def test_nothing_is_left_of_a_kl_that_does_not_count(device, backend):
    x, mu, s, e = problem("logvar", device=device)
    loss, [grad] = value_and_grads(lambda s: vae_fast.elbo_loss(x.sigmoid(), e, mu, s, beta=0.0, scale_bounds=(1.0, 2.0, "softclip")), [s])
    torch.testing.assert_close(loss, -vae_fast.bernoulli_log_prob(x.sigmoid(), e).mean())
    assert not grad.any()


def test_checks_look_at_what_the_bounds_leave(device, backend):
    mu, std = torch.zeros(1, 2, device=device), torch.tensor([[-1.0, 2.0]], device=device)
    with vae_fast.checks():
        vae_fast.gaussian_kl(mu, std, scale="std", scale_bounds=(0.1, 3.0, "clamp"))
        vae_fast.laplace_log_prob(mu, mu, std, scale="std", scale_bounds=(0.1, 3.0, "clamp"))
        assert_refused(lambda: vae_fast.gaussian_kl(mu, std, scale="std"), ValueError, ["logvar"])
        assert_refused(
            lambda: vae_fast.gaussian_kl(mu, std * math.nan, scale="std", scale_bounds=(0.1, 3.0, "clamp")), ValueError, ["logvar"]
        )


BAD = [
    ((1.0, 1.0, "clamp"), ValueError, ["scale_bounds", "low < high"]),
    ((2.0, 1.0, "tanh"), ValueError, ["scale_bounds", "low < high"]),
    ((math.nan, 1.0, "clamp"), ValueError, ["scale_bounds[0]", "nan"]),
    ((0.0, math.inf, "clamp"), ValueError, ["scale_bounds[1]", "inf"]),
    ((0.0, "1", "clamp"), TypeError, ["scale_bounds[1]"]),
    ((0.0, torch.tensor(1.0), "clamp"), TypeError, ["scale_bounds[1]"]),
    ((0.0, True, "clamp"), TypeError, ["scale_bounds[1]"]),
    ((0.0, 1.0, "clip"), ValueError, ["scale_bounds[2]", "clip", "softclip"]),
    ((0.0, 1.0, None), ValueError, ["scale_bounds[2]"]),
    ((0.0, 1.0), TypeError, ["scale_bounds", "(low, high, mode)"]),
    (("clamp", 0.0, 1.0), ValueError, ["scale_bounds[2]"]),
    ("clamp", TypeError, ["scale_bounds", "(low, high, mode)"]),
    (1.0, TypeError, ["scale_bounds", "(low, high, mode)"]),
]


@pytest.mark.parametrize(("bounds", "kind", "words"), BAD, ids=str)
def test_bad_bounds_are_refused(bounds, kind, words, backend):
    t = torch.zeros(2, 3)
    for f in (
        lambda: vae_fast.gaussian_kl(t, t, scale_bounds=bounds),
        lambda: vae_fast.reparameterize(t, t, scale_bounds=bounds),
        lambda: vae_fast.reparameterize_with_kl(t, t, scale_bounds=bounds),
        lambda: vae_fast.gaussian_log_prob(t, t, t, scale_bounds=bounds),
        lambda: vae_fast.student_t_log_prob(t, t + 1, t, t, scale_bounds=bounds),
        lambda: vae_fast.discretized_logistic_log_prob(t, t, t, scale_bounds=bounds),
        lambda: vae_fast.elbo_loss(t, t, t, t, scale_bounds=bounds),
        lambda: vae_fast.elbo(t, t, t, t, likelihood=lambda x, r: (x - r).sum(-1), scale_bounds=bounds),
    ):
        assert_refused(f, kind, words)
    assert_refused(
        lambda: vae_fast.elbo_loss(t, (t, t), t, t, likelihood="gaussian", recon_scale_bounds=bounds),
        kind,
        [f"recon_{words[0]}", *words[1:]],
    )


def test_bounds_of_what_is_not_there_are_refused(backend):
    t, bounds = torch.zeros(2, 3), (0.1, 1.0, "clamp")
    assert_refused(lambda: vae_fast.gaussian_log_prob(t, t, scale_bounds=bounds), ValueError, ["scale_bounds", "logvar"])
    assert_refused(lambda: vae_fast.gaussian_kl(t, t + 1, scale="std", scale_bounds=(-0.1, 1.0, "clamp")), ValueError, ["scale_bounds[0]"])
    for likelihood, recon in (("bernoulli", t), ("gaussian", t), ("laplace", t), ("negative_binomial", (t, t)), ("multinomial", t)):
        x = t.int() if likelihood == "negative_binomial" else t
        f = functools.partial(vae_fast.elbo_loss, x, recon, t, t, likelihood=likelihood, recon_scale_bounds=bounds)
        assert_refused(f, ValueError, ["recon_scale_bounds", "expected None"])
    assert_refused(
        lambda: vae_fast.elbo(t, t, t, t, likelihood=lambda x, r: (x - r).sum(-1), recon_scale_bounds=bounds),
        ValueError,
        ["recon_scale_bounds", "function"],
    )


@pytest.mark.parametrize("low, high", [(0.5, 80.0), (-80.0, -0.5), (-1.0, 1.0)])
def test_tanh_knows_the_smaller_bound_to_its_own_rounding(low, high, device, backend):
    """By the formula from the middle, 40, a scale near 0.5 is known to the rounding of 40."""
    t = torch.linspace(low - 100, high + 100, 4001, device=device)
    u = (t.double() - (low + high) / 2) / ((high - low) / 2)
    value = torch.where(u < 0, low + (high - low) * (2 * u).sigmoid(), high - (high - low) * (-2 * u).sigmoid())
    got = vae_fast.gaussian_log_prob(torch.zeros_like(t), 0.0 * t, t, scale="log_std", scale_bounds=(low, high, "tanh"), event_dim=0)
    found = -got.double() - 0.5 * math.log(2 * math.pi)
    near = u.abs() > 1.0  # the value's own rounding, that of the constant, and of t and u
    error = (found - value).abs()[near]
    allowed = (2.0 * value.abs() + 1.0 + 3.0 * (value - torch.where(u < 0, low, high)).abs() * (1 + u.abs()))[near] * 2.0**-24 * 2
    assert (error <= allowed).all(), (error / allowed).max()

"""A likelihood that is a function: the loss of plain autograd, with the gradients written in the forward pass."""

import gc
import weakref

import pytest
import torch
from oracle import assert_refused, leaves, needs_kernels, value_and_grads
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import vae_fast
from vae_fast.models import VAE


def laplace(x, loc, log_scale):
    """Not one of the kernels' terms."""
    return (-(x - loc).abs() * (-log_scale).exp() - log_scale).sum(-1)


def tensors(dtype=torch.float32, batch=(6,), device="cpu"):
    shapes = ((*batch, 5), (*batch, 5), (*batch, 5), (*batch, 3), (*batch, 3))
    return [torch.randn(s, dtype=dtype, device=device) for s in shapes]


def ours(x, loc, log_scale, mu, logvar, f=vae_fast.elbo_loss, **kw):
    return f(x, (loc, log_scale), mu, logvar, likelihood=laplace, **kw)


def plain(x, loc, log_scale, mu, logvar, beta=1.0, reduction="mean"):
    kl = 0.5 * (logvar.exp() - 1 - logvar + mu * mu).sum(-1)
    loss = beta * kl - laplace(x, loc, log_scale)
    return {"mean": loss.mean, "sum": loss.sum, "none": lambda: loss}[reduction]()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_values_and_gradients(reduction, beta, device, backend):
    t = tensors(device=device)
    got = value_and_grads(lambda *v: ours(*v, reduction=reduction, beta=beta), t)
    want = value_and_grads(lambda *v: plain(*v, reduction=reduction, beta=beta), [v.double() for v in t])
    torch.testing.assert_close(got[0].double(), want[0], rtol=1e-6, atol=1e-6)
    for a, b in zip(got[1], want[1], strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours(*t, f=vae_fast.elbo, beta=beta), -plain(*t, beta=beta, reduction="none"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", ["logvar", "softplus"])
@pytest.mark.parametrize("clip", [None, "clamp"])
def test_a_likelihood_by_name_as_a_function(clip, scale, device, backend):
    """The ELBO of the fused head, by way of the function of its first term."""
    x, logits, mu, logvar = torch.rand(4, 7, device=device), *(torch.randn(4, n, device=device) for n in (7, 3, 3))
    prior = torch.randn(3, device=device), torch.randn(3, device=device)

    def f(x, logits):
        return vae_fast.bernoulli_log_prob(x, logits, clip=clip, eps=1e-3)

    def loss(likelihood, **kw):
        def call(x, a, mu, logvar, p, t):
            given = {"prior_mu": p, "prior_logvar": t, "scale": scale, "free_bits": 0.1, "beta": 0.7}
            return vae_fast.elbo_loss(x, a, mu, logvar, likelihood=likelihood, **given, **kw)

        return value_and_grads(call, [x, logits, mu, logvar, *prior])

    value, grads = loss(f)
    want, want_grads = loss("bernoulli", clip=clip, eps=1e-3)
    torch.testing.assert_close(value, want, rtol=1e-6, atol=0)
    for a, b in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_mixture_density_network(device, backend):
    """Another op of the package, whose parameters come in a tuple."""
    y, logits, means, log_scale = torch.randn(6, 2), torch.randn(6, 4), torch.randn(6, 4, 2), torch.randn(6, 4, 2)
    mu, logvar = torch.randn(6, 3), torch.randn(6, 3)

    def loss(y, a, m, s, mu, logvar):
        return vae_fast.elbo_loss(y, (a, m, s), mu, logvar, likelihood=vae_fast.mdn_log_prob)

    def formula(y, a, m, s, mu, logvar):
        return (vae_fast.gaussian_kl(mu, logvar) - vae_fast.mdn_log_prob(y, a, m, s)).mean()

    t = [v.to(device) for v in (y, logits, means, log_scale, mu, logvar)]
    for a, b in zip(value_and_grads(loss, t)[1], value_and_grads(formula, t)[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_an_upstream_gradient_and_a_retained_graph(device, backend):
    t = leaves(tensors(device=device))
    loss = ours(*t)
    (3.0 * loss).backward(retain_graph=True)
    once = [v.grad.clone() for v in t]
    (3.0 * loss).backward()
    for v, a in zip(t, once, strict=True):
        torch.testing.assert_close(v.grad, 2 * a)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    want = value_and_grads(lambda *v: 3.0 * plain(*v), t)[1]
    for a, b in zip(once, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_derivatives(reduction, backend):
    t = leaves(tensors(torch.float64, (3,)))
    assert gradcheck(lambda *v: ours(*v, reduction=reduction), t)
    assert gradgradcheck(lambda *v: ours(*v, reduction=reduction), t)


def test_only_some_gradients_are_wanted(backend):
    for wanted in ([False, True, False, False, True], [False] * 5):
        t = leaves(tensors(), wanted)
        loss = ours(*t)
        assert loss.requires_grad == any(wanted)
        if any(wanted):
            loss.backward()
        assert [v.grad is not None for v in t] == wanted
    with torch.no_grad():
        assert not ours(*leaves(tensors())).requires_grad


def test_tensors_that_the_function_holds_get_their_gradients(backend):
    """A learned scale is no argument; a flow's weights are none either."""
    x, loc, _, mu, logvar = leaves(tensors())
    log_scale, layer = torch.zeros(5, requires_grad=True), nn.Linear(5, 5)

    def run(f):
        for t in (x, loc, mu, logvar, log_scale, *layer.parameters()):
            t.grad = None
        f().backward()
        return [t.grad.clone() for t in (x, loc, mu, logvar, log_scale, *layer.parameters())]

    calls = []

    def held(x, recon):
        calls.append(recon)
        return laplace(x, layer(recon), log_scale)

    got = run(lambda: vae_fast.elbo_loss(x, loc, mu, logvar, likelihood=held))
    assert len(calls) == 1
    for a, b in zip(got, run(lambda: plain(x, layer(loc), log_scale, mu, logvar)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_held_part_of_a_larger_graph_is_left_alone(backend):
    """What it leads to is wanted by another loss, too."""
    x, loc, _, mu, logvar = leaves(tensors())
    weight = torch.ones(5, requires_grad=True)
    log_scale = (weight * 0.3).tanh()

    def grads(f):
        weight.grad = loc.grad = None
        (f() + log_scale.sum()).backward(retain_graph=True)
        return weight.grad.clone(), loc.grad.clone()

    calls = []

    def held(x, m):
        calls.append(m)
        return laplace(x, m, log_scale)

    got = grads(lambda: vae_fast.elbo_loss(x, loc, mu, logvar, likelihood=held))
    assert len(calls) == 1
    for a, b in zip(got, grads(lambda: plain(x, loc, log_scale, mu, logvar)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("through", [False, True], ids=["itself", "what it is made of"])
def test_an_argument_that_the_function_holds_too(backend, through):
    """The gradient is the sum of both ways."""
    x, leaf, _, mu, logvar = leaves(tensors())
    loc = leaf.exp() if through else leaf
    got = torch.autograd.grad(vae_fast.elbo_loss(x, loc, mu, logvar, likelihood=lambda x, m: laplace(x, m, leaf * 0.1)), leaf)[0]
    loc = leaf.exp() if through else leaf
    want = torch.autograd.grad(plain(x, loc, leaf * 0.1, mu, logvar), leaf)[0]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_what_the_function_saves_is_gone_after_the_forward_pass():
    kept = []

    def f(x, recon):
        hidden = (recon * 2).exp()
        kept.append(weakref.ref(hidden.untyped_storage()))
        return (hidden * hidden * x).sum(-1)

    t = leaves(tensors())
    loss = vae_fast.elbo_loss(t[0], t[1], t[3], t[4], likelihood=f)
    gc.collect()
    assert len(kept) == 1 and kept[0]() is None
    loss.backward()
    assert len(kept) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_gradients_wait_for_the_loss_scale(dtype):
    """Divided by the batch size they would be out of the range of halves before a scale could help."""
    t = leaves([v.to(dtype) for v in tensors(batch=(4096,))])
    (vae_fast.elbo_loss(t[0], t[1], t[3], t[4], likelihood=lambda x, m: -((x - m) ** 2).sum(-1) * 1e-4) * 2.0**14).backward()
    want = leaves([v.detach().double() for v in t])
    (plain(want[0], want[1], torch.zeros(()), want[3], want[4]) * 0).backward()
    exact = 2e-4 * (t[1].detach().double() - t[0].detach().double()) / 4096 * 2.0**14
    assert (t[1].grad.double() - exact).abs().max() < 0.02 * exact.abs().max()


@needs_kernels
def test_compiled_whole(device):
    t = tensors(device=device)
    torch.compiler.reset()
    compiled = torch.compile(lambda *v: ours(*v), fullgraph=True, backend="aot_eager")
    for a, b in zip(value_and_grads(compiled, t)[1], value_and_grads(ours, t)[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_kl_out_of_range_beside_a_beta_of_zero(backend):
    x, loc, log_scale, mu, logvar = tensors()
    loss = ours(x, loc, log_scale, mu, logvar * 0 + 1e38, beta=0.0)
    torch.testing.assert_close(loss, -laplace(x, loc, log_scale).mean())
    assert ours(x, loc, log_scale, mu * torch.nan, logvar, beta=0.0).isnan()


def test_importance_weighted(device, backend):
    x, mu, logvar = (torch.randn(6, n, device=device) for n in (5, 3, 3))
    z, loc = torch.randn(4, 6, 3, device=device), torch.randn(4, 6, 5, device=device)

    def loss(likelihood, x, loc, mu, logvar):
        return vae_fast.iwae_loss(x, loc, z, mu, logvar, likelihood=likelihood)

    got = value_and_grads(lambda *t: loss(vae_fast.gaussian_log_prob, *t), [x, loc, mu, logvar])
    want = value_and_grads(lambda *t: loss("gaussian", *t), [x, loc, mu, logvar])
    torch.testing.assert_close(got[0], want[0])
    for a, b in zip(got[1], want[1], strict=True):
        torch.testing.assert_close(a, b)


def test_a_model(backend):
    vae = VAE(nn.Linear(5, 6), nn.Linear(3, 5), latent_dim=3, likelihood=lambda x, m: vae_fast.gaussian_log_prob(x, m))
    other = VAE(vae.encoder, vae.decoder, latent_dim=3, likelihood="gaussian")
    x, noise = torch.randn(4, 5), torch.randn(4, 3)
    torch.testing.assert_close(vae.loss(x, noise), other.loss(x, noise))
    torch.testing.assert_close(vae.log_likelihood(x, x), other.log_likelihood(x, x))
    for call in (lambda: vae.sample(2), lambda: vae.reconstruct(x), lambda: vae.draw_of(x)):
        assert_refused(call, ValueError, ["likelihood is a function", "call decode(z)"])
    assert_refused(
        lambda: VAE(nn.Linear(5, 6), nn.Linear(3, 5), likelihood=laplace, clip="add"), ValueError, ["clip='add'", "that is a function"]
    )


A, B = torch.rand(4, 5), torch.zeros(4, 2)
BAD = {
    "number": (lambda x, r: 1.0, TypeError, ["likelihood", "one log-probability per sample", "float"]),
    "integers": (lambda x, r: torch.zeros(4, dtype=torch.int64), TypeError, ["likelihood", "int64"]),
    "shape": (lambda x, r: torch.zeros(3), ValueError, ["likelihood gives shape (3,)", "batch shape (4,)"]),
    "elements": (lambda x, r: torch.zeros(4, 5), ValueError, ["likelihood gives shape (4, 5)", "one log-probability per sample"]),
    "as many": (lambda x, r: torch.zeros(4, 4), ValueError, ["likelihood gives shape (4, 4)", "one log-probability per sample"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_functions(name, backend):
    f, kind, words = BAD[name]
    for call in (vae_fast.elbo, vae_fast.elbo_loss):
        assert_refused(lambda call=call: call(A, A, B, B, likelihood=f), kind, words)


def test_bad_arguments(backend):
    for call in (vae_fast.elbo, vae_fast.elbo_loss):
        assert_refused(lambda call=call: call(A, A, B, B, likelihood=laplace, clip="bce"), ValueError, ["clip='bce'", "a function"])
        assert_refused(lambda call=call: call(A, A, B, B[:3], likelihood=laplace), ValueError, ["logvar has shape (3, 2)"])
        assert_refused(lambda call=call: call(A, A, B, B, likelihood=3), ValueError, ["likelihood=3", "'gaussian'"])
    donate = {"likelihood": laplace, "donate_recon": True}
    assert_refused(lambda: vae_fast.elbo_loss(A, A * 1, B, B, **donate), ValueError, ["donate_recon=True", "likelihood by name"])
    z, words = torch.zeros(2, 4, 2), ["likelihood gives shape (4,)", "z has batch shape (2, 4)"]
    assert_refused(lambda: vae_fast.iwae_loss(A, A[None], z, B, B, likelihood=lambda x, r: torch.zeros(4)), ValueError, words)

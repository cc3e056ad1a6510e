"""First and second derivatives, and everything autograd may ask of a loss that wrote its gradient in the forward pass."""

import itertools

import pytest
import torch
from mixtures import MIXTURES
from oracle import ALL, CASES, ELBOS, LOGSUMEXPS, SAMPLES, TERMS, assert_within_contract, leaves, needs_kernels, value_and_grads
from torch.autograd import gradcheck, gradgradcheck

import vae_fast

LOSS = CASES["elbo.bernoulli"]


def smooth(case, tensors):
    """Moves data away from kinks: no KL element at its floor, no probability at a clip bound."""
    if case.name in ("elbo.bernoulli.free_bits", "elbo.gaussian.pair.prior"):
        tensors[-case.latent].mul_(1.5).add_(0.2)
    return tensors


def without_noise(case, tensors):
    """The tensors to differentiate, and the function of them: no gradient flows to the noise."""
    if case not in SAMPLES:
        return tensors, case.ours
    noise = tensors[2]
    return tensors[:2], lambda mu, s: case.ours(mu, s, noise)


@pytest.mark.parametrize("case", [*ALL, *MIXTURES], ids=str)
def test_gradcheck(case, device, backend):
    tensors, f = without_noise(case, smooth(case, case.tensors((2, 4), (2, 3), device=device)))
    assert gradcheck(f, leaves(tensors))


@pytest.mark.parametrize("case", [*ALL, *MIXTURES], ids=str)
def test_gradgradcheck(case, device, backend):
    tensors, f = without_noise(case, smooth(case, case.tensors((2, 3), (2, 2), device=device)))
    assert gradgradcheck(f, leaves(tensors))


@pytest.mark.parametrize("case", [*TERMS, *ELBOS], ids=str)
def test_gradcheck_through_broadcasting(case, device):
    tensors = smooth(case, case.tensors((2, 3, 4), (2, 3, 2), device=device))
    tensors[0] = tensors[0][:1]  # broadcast over the first batch dimension
    if len(tensors) > 1:
        tensors[1] = tensors[1][:, :1]
    if len(tensors) > 2:
        tensors[-1] = tensors[-1][0]  # fewer dimensions
    assert gradcheck(case.ours, leaves(tensors))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("case", ELBOS, ids=str)
def test_gradcheck_of_the_loss(case, reduction, device, backend):
    tensors = leaves(smooth(case, case.tensors((2, 4), (2, 3), device=device)))

    def f(*t):
        return case.ours(*t, f=vae_fast.elbo_loss, reduction=reduction)

    assert gradcheck(f, tensors)
    assert gradgradcheck(f, tensors)


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("num_samples", [None, 2])
def test_gradcheck_of_the_sample_with_kl(prior, num_samples, device, backend):
    noise = torch.randn((3, 4) if num_samples is None else (num_samples, 3, 4), dtype=torch.float64, device=device)
    tensors = leaves([torch.randn(3, 4, dtype=torch.float64, device=device) for _ in range(4 if prior else 2)])

    def f(*t):
        return vae_fast.reparameterize_with_kl(*t, noise=noise, num_samples=num_samples)

    for check in (gradcheck, gradgradcheck):
        assert check(f, tensors)
        assert check(lambda *t: f(*t)[0], tensors[:2])
        assert check(lambda *t: f(*t)[1], tensors)


# --- float32 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shapes", [((7, 13), (7, 5)), ((64, 784), (64, 20))], ids=["small", "digits"])
@pytest.mark.parametrize("case", ALL, ids=str)
def test_float32_gradients_are_within_the_contract(case, shapes, device, backend):
    tensors = case.tensors(*shapes, torch.float32, device)
    wanted = [True, True, False] if case in SAMPLES else None
    upstream = torch.randn_like(case.ours(*tensors))
    ours = value_and_grads(case.ours, tensors, upstream, wanted)[1]
    plain = value_and_grads(case.plain, tensors, upstream, wanted)[1]
    truth = value_and_grads(case.plain, [t.double() for t in tensors], upstream, wanted)[1]
    for got, formula, want in zip(ours, plain, truth, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            assert got.dtype == torch.float32
            assert_within_contract(got, want, formula)


# --- which gradients are wanted ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [CASES["elbo.bernoulli"], CASES["elbo.gaussian.pair.prior"]], ids=str)
def test_every_combination_of_wanted_gradients(case, device):
    tensors = case.tensors((3, 5), (3, 2), device=device)
    names = range(len(tensors))
    for f in (vae_fast.elbo, vae_fast.elbo_loss):
        full = value_and_grads(lambda *t, f=f: case.ours(*t, f=f), tensors)[1]
        for wanted in itertools.product([False, True], repeat=len(tensors)):
            if not any(wanted):
                assert not case.ours(*tensors, f=f).requires_grad
                continue
            some = value_and_grads(lambda *t, f=f: case.ours(*t, f=f), tensors, wanted=wanted)[1]
            for i in names:
                assert torch.equal(some[i], full[i]) if wanted[i] else some[i] is None


@pytest.mark.parametrize("case", [*TERMS, *LOGSUMEXPS], ids=str)
def test_one_wanted_gradient_at_a_time(case, device):
    tensors = case.tensors((3, 5), device=device)
    full = value_and_grads(case.ours, tensors)[1]
    for i in range(len(tensors)):
        some = value_and_grads(case.ours, tensors, wanted=[j == i for j in range(len(tensors))])[1]
        assert torch.equal(some[i], full[i])
        assert sum(g is not None for g in some) == 1


def test_sample_and_kl_may_be_used_alone_or_together(device, backend):
    noise = torch.randn(3, 4, device=device)
    a, b, p = (torch.randn(3, 4, device=device) for _ in range(3))

    def grads(use_z, use_kl):
        mu, logvar, prior = leaves([a, b, p])
        z, kl = vae_fast.reparameterize_with_kl(mu, logvar, prior, noise=noise)
        (z.sum() * use_z + kl.sum() * use_kl if use_z and use_kl else z.sum() if use_z else kl.sum()).backward()
        return [mu.grad, logvar.grad, prior.grad]

    z_only, kl_only, both = grads(1, 0), grads(0, 1), grads(1, 1)
    assert z_only[2] is None or (z_only[2] == 0).all()
    for i in range(3):
        torch.testing.assert_close(both[i], kl_only[i] + (0 if z_only[i] is None else z_only[i]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(z_only[0], torch.ones_like(a), rtol=0, atol=0)


def test_no_gradient_flows_to_the_noise(device, backend):
    mu, logvar, noise = leaves([torch.randn(3, 4, device=device) for _ in range(3)])
    assert not vae_fast.reparameterize(mu.detach(), logvar.detach(), noise=noise).requires_grad
    z, kl = vae_fast.reparameterize_with_kl(mu, logvar, noise=noise)
    (z.sum() + kl.sum()).backward()
    assert noise.grad is None
    assert mu.grad is not None


def test_one_tensor_in_two_places_gets_both_gradients(device, backend):
    t = torch.randn(3, 4, dtype=torch.float64, device=device).requires_grad_()
    assert gradcheck(lambda t: vae_fast.gaussian_kl(t, t), t)
    assert gradcheck(lambda t: vae_fast.gaussian_log_prob(t, t, t), t)
    assert gradcheck(lambda t: vae_fast.elbo_loss(t.sigmoid(), t, t, t), t)
    assert gradcheck(lambda t: vae_fast.logsumexp(t, -1, t.exp()), t)
    assert gradcheck(lambda t: vae_fast.elbo_loss(t, (t, t), t, t, prior_mu=t, prior_logvar=t, likelihood="gaussian"), t)


# --- the loss that carries its gradient --------------------------------------------------------------------------------


def loss_and_leaves(device, dtype=torch.float64, reduction="mean"):
    tensors = leaves(LOSS.tensors((6, 9), (6, 3), dtype, device))
    return LOSS.ours(*tensors, f=vae_fast.elbo_loss, reduction=reduction), tensors


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_second_backward_over_a_retained_graph_gives_the_same(reduction, device, backend):
    loss, tensors = loss_and_leaves(device, reduction=reduction)
    first = torch.autograd.grad(loss, tensors, retain_graph=True)
    kept = [g.clone() for g in first]
    for g in first:
        g.zero_()  # what the first pass handed out is the caller's
    for _ in range(2):
        again = torch.autograd.grad(loss, tensors, retain_graph=True)
        for got, want in zip(again, kept, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    half = torch.autograd.grad(loss, tensors[1:3], torch.tensor(0.5, dtype=loss.dtype, device=device))
    torch.testing.assert_close(list(half), [0.5 * g for g in kept[1:3]], rtol=1e-12, atol=1e-14)


def test_gradients_accumulate_over_a_retained_graph(device):
    loss, tensors = loss_and_leaves(device)
    loss.backward(retain_graph=True)
    once = [t.grad.clone() for t in tensors]
    loss.backward()
    for t, g in zip(tensors, once, strict=True):
        torch.testing.assert_close(t.grad, 2 * g, rtol=1e-12, atol=1e-14)


def test_a_second_backward_over_a_freed_graph_is_refused(device, backend):
    calls = [
        lambda *t: LOSS.ours(*t, f=vae_fast.elbo_loss),
        lambda *t: LOSS.ours(*t).sum(),
        lambda *t: vae_fast.gaussian_kl(*t[2:]).sum(),
        lambda *t: vae_fast.reparameterize(*t[2:]).sum(),
        lambda *t: vae_fast.logsumexp(t[2]).sum(),
    ]
    for f in calls:
        out = f(*leaves(LOSS.tensors((6, 9), (6, 3), device=device)))
        out.backward()
        with pytest.raises(RuntimeError, match="second time"):
            out.backward()


@pytest.mark.parametrize("factor", [65536.0, 1.0, 0.0, -3.0, 2.0**-20])
def test_upstream_gradients_scale_the_loss_gradient(factor, device, backend):
    tensors = LOSS.tensors((6, 9), (6, 3), torch.float32, device)
    for reduction in ("mean", "sum"):

        def f(*t, reduction=reduction):
            return LOSS.ours(*t, f=vae_fast.elbo_loss, reduction=reduction)

        base = value_and_grads(f, tensors)[1]
        scaled = value_and_grads(lambda *t, f=f: f(*t) * factor, tensors)[1]
        for got, want in zip(scaled, base, strict=True):
            torch.testing.assert_close(got, want * factor, rtol=1e-6, atol=1e-6 * (want * factor).abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_gradient_scaler(dtype, device):
    scaler = torch.amp.GradScaler(device, init_scale=1024.0)
    tensors = leaves(LOSS.tensors((6, 9), (6, 3), dtype, device))
    optimizer = torch.optim.SGD(
        [t for t in tensors if dtype == torch.float32] or [torch.zeros(1, device=device, requires_grad=True)], lr=0.1
    )
    scaler.scale(LOSS.ours(*tensors, f=vae_fast.elbo_loss)).backward()
    want = value_and_grads(lambda *t: LOSS.ours(*t, f=vae_fast.elbo_loss), tensors)[1]
    rounding = torch.finfo(dtype).eps
    for t, g in zip(tensors, want, strict=True):
        torch.testing.assert_close(t.grad.double() / 1024.0, g.double(), rtol=2 * rounding, atol=2 * rounding * g.abs().max().item())
    if dtype == torch.float32:
        scaler.step(optimizer)
        torch.testing.assert_close([t.grad for t in tensors], want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("changed", range(4))
@needs_kernels
def test_inputs_changed_in_place_before_backward_are_detected(changed, device):
    for f in (vae_fast.elbo, vae_fast.elbo_loss):
        tensors = [t.clone() for t in leaves(LOSS.tensors((6, 9), (6, 3), device=device))]
        out = LOSS.ours(*tensors, f=f).sum()
        with torch.no_grad():
            tensors[changed].add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.backward()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_the_gradient_of_the_loss_has_a_gradient(reduction, device, backend):
    """A gradient penalty: the gradient is asked for with create_graph and differentiated through a nonlinear function."""
    tensors = LOSS.tensors((6, 9), (6, 3), device=device)

    def penalty(f):
        t = leaves(tensors)
        grads = torch.autograd.grad(f(*t).sum().exp2().log(), t, create_graph=True)
        total = sum(g.square().sum() for g in grads)
        return total.detach(), torch.autograd.grad(total, t)

    reduce = {"none": lambda t: t, "mean": torch.mean, "sum": torch.sum}[reduction]
    value, grads = penalty(lambda *t: LOSS.ours(*t, f=vae_fast.elbo_loss, reduction=reduction))
    want, want_grads = penalty(lambda *t: -reduce(LOSS.plain(*t)))
    torch.testing.assert_close(value, want, rtol=1e-10, atol=0)
    torch.testing.assert_close(list(grads), list(want_grads), rtol=1e-9, atol=1e-12)


def test_a_gradient_with_a_graph_then_one_without(device):
    loss, tensors = loss_and_leaves(device)
    with_graph = torch.autograd.grad(loss, tensors, create_graph=True)
    plain = torch.autograd.grad(loss, tensors)
    torch.testing.assert_close([g.detach() for g in with_graph], list(plain), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", [*ALL, *MIXTURES], ids=str)
def test_no_grad_and_inference_mode_give_the_same_value(case, device):
    tensors = leaves(case.tensors((3, 4), (3, 2), torch.float32, device))
    with_grad = case.ours(*tensors)
    assert with_grad.requires_grad
    with torch.no_grad():
        value = case.ours(*tensors)
        assert not value.requires_grad
        assert torch.equal(value, with_grad)
    with torch.inference_mode():
        assert torch.equal(case.ours(*(t.clone() for t in tensors)), with_grad)

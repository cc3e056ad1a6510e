"""torch.func: grad, vmap, jvp, jacobians and Hessians of every function, by the plain-torch formula."""

import pytest
import torch
from mixtures import LOG_PROBS, MDNS, MIXTURE_CASES, MIXTURES
from oracle import ALL, CASES, LOGSUMEXPS, SAMPLES, leaves, value_and_grads
from torch.func import functional_call, grad, grad_and_value, hessian, jacfwd, jacrev, jvp, vjp, vmap

import vae_fast


def differentiable(case, tensors):
    """Function and tensors to differentiate: no gradient flows to the noise of a sample."""
    if case not in SAMPLES:
        return case.ours, case.plain, tensors
    noise = tensors[2]
    return (lambda m, s: case.ours(m, s, noise)), (lambda m, s: case.plain(m, s, noise)), tensors[:2]


@pytest.mark.parametrize("case", [*ALL, *MIXTURES], ids=str)
def test_grad(case, device, backend):
    f, _, tensors = differentiable(case, case.tensors((3, 4), (3, 2), device=device))
    value, grads = value_and_grads(f, tensors)
    got = grad_and_value(lambda *t: f(*t).sum(), argnums=tuple(range(len(tensors))))(*tensors)
    torch.testing.assert_close(got[1], value.sum())
    torch.testing.assert_close(list(got[0]), grads)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_vmap(case, device, backend):
    f, _, tensors = differentiable(case, case.tensors((5, 3, 4), (5, 3, 2), device=device))
    if case in SAMPLES:
        noise = case.tensors((5, 3, 4), device=device)[2]
        got = vmap(case.ours)(*tensors, noise)
        want = torch.stack([case.ours(*t) for t in zip(*tensors, noise, strict=True)])
    else:
        got = vmap(f)(*tensors)
        want = torch.stack([f(*t) for t in zip(*tensors, strict=True)])
    torch.testing.assert_close(got, want)
    if case not in SAMPLES:
        shared = [tensors[0][0], *tensors[1:]]
        got = (
            vmap(f, in_dims=(None, *[0] * (len(tensors) - 1)))(*shared)
            if len(tensors) > 1
            else vmap(f, in_dims=1)(tensors[0].transpose(0, 1))
        )
        want = torch.stack(
            [f(*([shared[0]] if len(tensors) > 1 else []), *t) for t in zip(*tensors[min(1, len(tensors) - 1) :], strict=True)]
        )
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "case",
    [
        CASES["kl.logvar"],
        CASES["kl.var"],
        CASES["kl_prior.log_std"],
        CASES["kl_prior.softplus"],
        CASES["bernoulli_logits.add"],
        CASES["bernoulli_probs.clamp"],
        CASES["gaussian.unit"],
        CASES["gaussian.std"],
        CASES["elbo.bernoulli"],
        CASES["elbo.bernoulli.free_bits"],
        CASES["elbo.probs.add"],
        CASES["elbo.gaussian.pair.prior"],
    ],
    ids=str,
)
def test_gradients_of_each_sample(case, device):
    """vmap of grad: the classic use, per-sample gradients."""
    tensors = case.tensors((5, 4), (5, 2), device=device)
    got = vmap(grad(lambda *t: case.ours(*t), argnums=tuple(range(len(tensors)))))(*tensors)
    _, want = value_and_grads(case.ours, tensors)
    torch.testing.assert_close(list(got), want)


@pytest.mark.parametrize("case", [*ALL, *MIXTURES], ids=str)
def test_jvp_and_vjp(case, device):
    f, plain, tensors = differentiable(case, case.tensors((3, 4), (3, 2), device=device))
    tangents = [torch.randn_like(t) for t in tensors]
    value, tangent = jvp(f, tuple(tensors), tuple(tangents))
    want, want_tangent = jvp(plain, tuple(tensors), tuple(tangents))
    torch.testing.assert_close(value, want)
    torch.testing.assert_close(tangent, want_tangent)
    out, pull = vjp(f, *tensors)
    upstream = torch.randn_like(out)
    torch.testing.assert_close(list(pull(upstream)), value_and_grads(f, tensors, upstream)[1])


@pytest.mark.parametrize(
    "case",
    [
        CASES["kl.logvar"],
        CASES["kl_prior.softplus"],
        CASES["bernoulli_logits.none"],
        CASES["bernoulli_logits.bce"],
        CASES["bernoulli_probs.clamp"],
        CASES["gaussian.softplus"],
        CASES["elbo.bernoulli"],
        CASES["elbo.gaussian.pair.prior"],
        *LOGSUMEXPS,
    ],
    ids=str,
)
def test_jacobians_and_hessians(case, device):
    tensors = case.tensors((2, 3), (2, 2), device=device)
    last = len(tensors) - 1
    torch.testing.assert_close(jacrev(case.ours, last)(*tensors), jacrev(case.plain, last)(*tensors))
    torch.testing.assert_close(jacfwd(case.ours, last)(*tensors), jacfwd(case.plain, last)(*tensors))
    got = hessian(lambda *t: case.ours(*t).sum(), last)(*tensors)
    torch.testing.assert_close(got, hessian(lambda *t: case.plain(*t).sum(), last)(*tensors))


@pytest.mark.parametrize("case", MIXTURES, ids=str)
def test_vmap_over_the_rows_of_a_mixture(case, device, backend):
    tensors = case.tensors((5, 4), device=device)
    mapped = (0, 0, 0, 0) if case in MDNS else (0, None, None, None)
    torch.testing.assert_close(vmap(case.ours, mapped)(*tensors), case.ours(*tensors))
    slopes = vmap(grad(lambda *t: case.ours(*t).sum(), argnums=(0, 1, 2, 3)), mapped)(*tensors)
    want = value_and_grads(case.ours, tensors)[1]
    for got, true, m in zip(slopes, want, mapped, strict=True):
        torch.testing.assert_close(got if m == 0 else got.sum(0), true)


@pytest.mark.parametrize("case", LOG_PROBS, ids=str)
def test_vmap_over_mixtures(case, device, backend):
    """An ensemble: several sets of parameters for one batch."""
    sets = [case.tensors((5, 4), device=device) for _ in range(3)]
    parameters = [torch.stack(t) for t in zip(*(s[1:] for s in sets), strict=True)]
    got = vmap(case.ours, (None, 0, 0, 0))(sets[0][0], *parameters)
    torch.testing.assert_close(got, torch.stack([case.ours(sets[0][0], *s[1:]) for s in sets]))


@pytest.mark.parametrize("case", [MIXTURE_CASES["mixture.diag"], MIXTURE_CASES["mixture.full"], MIXTURE_CASES["mdn"]], ids=str)
def test_jacobians_and_hessians_of_mixtures(case, device):
    tensors = case.tensors((2, 2), device=device)
    for argument in range(4):
        torch.testing.assert_close(jacrev(case.ours, argument)(*tensors), jacrev(case.plain, argument)(*tensors))
        torch.testing.assert_close(jacfwd(case.ours, argument)(*tensors), jacfwd(case.plain, argument)(*tensors))
        got = hessian(lambda *t: case.ours(*t).sum(), argument)(*tensors)
        torch.testing.assert_close(got, hessian(lambda *t: case.plain(*t).sum(), argument)(*tensors))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_under_transforms(reduction, device):
    tensors = CASES["elbo.bernoulli"].tensors((5, 4), (5, 2), device=device)

    def loss(*t):
        return CASES["elbo.bernoulli"].ours(*t, f=vae_fast.elbo_loss, reduction=reduction)

    _, want = value_and_grads(loss, tensors)
    torch.testing.assert_close(list(grad(loss, argnums=(0, 1, 2, 3))(*tensors)), want)
    samples = [t[:, None] for t in tensors]
    per_sample = vmap(grad(loss, argnums=1))(*samples)
    torch.testing.assert_close(per_sample.squeeze(1), want[1] * (5 if reduction == "mean" else 1))


def test_per_sample_gradients_of_a_module(device):
    net = torch.nn.Linear(4, 4, device=device)
    x, mu = torch.rand(6, 4, device=device), torch.randn(6, 2, device=device)
    params = {k: v.detach() for k, v in net.named_parameters()}

    def loss(params, x, mu):
        return vae_fast.elbo_loss(x, functional_call(net, params, (x,)), mu, mu, reduction="sum")

    each = vmap(grad(loss), in_dims=(None, 0, 0))(params, x, mu)
    loss(dict(net.named_parameters()), x, mu).backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(each[name].sum(0), p.grad, rtol=1e-4, atol=1e-5)


def test_vmap_over_random_samples(device, backend):
    mu = torch.zeros(50, 40, device=device)

    def draw(m):
        return vae_fast.reparameterize(m, torch.zeros_like(m))

    with pytest.raises(RuntimeError, match="randomness"):
        vmap(draw)(mu)
    different = vmap(draw, randomness="different")(mu)
    assert len({tuple(row.tolist()) for row in different}) == 50
    assert abs(different.mean().item()) < 4.5 / 2000**0.5
    same = vmap(draw, randomness="same")(mu)
    assert torch.equal(same, same[:1].expand_as(same))
    z, kl = vmap(lambda m: vae_fast.reparameterize_with_kl(m, m, num_samples=3), randomness="different")(mu)
    assert z.shape == (50, 3, 40)
    assert torch.equal(kl, torch.zeros(50, device=device))


def test_forward_mode(device):
    """Forward-mode AD outside torch.func gives the right tangent; it never silently drops it."""
    from torch.autograd import forward_ad

    mu, logvar = torch.randn(3, 4, dtype=torch.float64, device=device), torch.randn(3, 4, dtype=torch.float64, device=device)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(mu, torch.ones_like(mu))
        out = forward_ad.unpack_dual(vae_fast.gaussian_kl(dual, logvar))
        assert out.tangent is not None
        torch.testing.assert_close(out.tangent, mu.sum(-1))


def test_transforms_nest_with_autograd(device):
    """An outer backward() through an inner torch.func.grad."""
    mu, logvar = leaves([torch.randn(3, 4, dtype=torch.float64, device=device) for _ in range(2)])
    slope = grad(lambda v: vae_fast.gaussian_kl(mu, v).sum())(logvar)
    slope.sum().backward()
    torch.testing.assert_close(logvar.grad, 0.5 * logvar.detach().exp())

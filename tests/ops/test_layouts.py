"""Strides, broadcasting and sizes: the number does not depend on how the memory lies, and images are not copied."""

import pytest
import torch
from oracle import ALL, CASES, ELBOS, SAMPLES, TERMS, assert_within_contract, draw, needs_kernels, value_and_grads

import vae_fast

ROW_WISE = [*TERMS, *ELBOS]


def transposed(t):
    return t.transpose(0, -1).contiguous().transpose(0, -1)


def sliced(t):
    """The middle of a larger tensor, off by an odd number of elements in every dimension."""
    big = t.new_full([n + 4 for n in t.shape], 77.0)
    view = big[tuple(slice(1, 1 + n) for n in t.shape)]
    view.copy_(t)
    return view


def strided(t):
    """Every third element of a larger last dimension."""
    big = t.new_full((*t.shape[:-1], 3 * t.shape[-1]), 77.0)
    big[..., 1::3] = t
    return big[..., 1::3]


def misaligned(t):
    """Dense, but one element past any alignment."""
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


LAYOUTS = {f.__name__: f for f in (transposed, sliced, strided, misaligned)}


def same_numbers(case, tensors, other, upstream=None):
    """The case gives the same value and gradients for the two lists of equal tensors, up to the order of summation."""
    wanted = [True, True, False] if case in SAMPLES else None
    value, grads = value_and_grads(case.ours, tensors, upstream, wanted)

    leaves = [t.requires_grad_(w) for t, w in zip(other, wanted or [True] * len(other), strict=True)]
    out = case.ours(*leaves)
    out.backward(torch.ones_like(out) if upstream is None else upstream)
    torch.testing.assert_close(out.detach(), value, rtol=1e-6, atol=1e-6)
    for t, g in zip(leaves, grads, strict=True):
        assert (t.grad is None) == (g is None)
        if g is not None:
            torch.testing.assert_close(t.grad, g, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("case", ALL, ids=str)
def test_strides_do_not_change_the_number(case, layout, device):
    tensors = case.tensors((6, 19), (6, 7), torch.float32, device)
    same_numbers(case, tensors, [layout(t) for t in tensors])


@pytest.mark.parametrize("layout", [transposed, sliced, strided], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "case", [CASES["kl_prior.logvar"], CASES["bernoulli_logits.none"], CASES["gaussian.logvar"], CASES["elbo.bernoulli"]], ids=str
)
def test_strided_batches_of_four_dimensions(case, layout, device):
    tensors = case.tensors((2, 3, 4, 5), (2, 3, 4, 6), torch.float32, device)
    same_numbers(case, tensors, [layout(t) for t in tensors])
    permuted = [t.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3) for t in tensors]
    same_numbers(case, tensors, permuted)


@pytest.mark.parametrize("case", ROW_WISE, ids=str)
def test_many_batch_dimensions(case, device):
    batch = (2, 1, 3, 2, 1, 2, 2)
    tensors = case.tensors((*batch, 3), (*batch, 2), torch.float32, device)
    order = (3, 0, 5, 2, 6, 1, 4, 7)
    inverse = torch.tensor(order).argsort().tolist()
    same_numbers(case, tensors, [t.permute(order).contiguous().permute(inverse) for t in tensors])


@pytest.mark.parametrize("case", ALL, ids=str)
def test_expanded_inputs(case, device, backend):
    """Stride 0 in the batch, in the event, and in both; the gradient of what was expanded is the sum."""
    for shape in ((1, 8), (5, 1), (1, 1)):
        small = case.tensors(shape, shape, torch.float64, device)
        wanted = [True, True, False] if case in SAMPLES else [True] * len(small)

        def through_expand(f, wanted=wanted):
            return lambda *t: f(*(v.expand(5, 8) if w else v.expand(5, 8).clone() for v, w in zip(t, wanted, strict=True)))

        value, grads = value_and_grads(through_expand(case.ours), small, wanted=wanted)
        truth, want = value_and_grads(through_expand(case.plain), small, wanted=wanted)
        torch.testing.assert_close(value, truth, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(grads[:2], want[:2], rtol=1e-10, atol=1e-12)


SAMPLE_BATCHES = {
    "samples of the latent": ((4, 3, 8), (3, 8), (3, 2)),
    "targets without samples": ((3, 8), (4, 3, 8), (4, 3, 2)),
    "samples on both sides": ((4, 1, 8), (1, 3, 8), (1, 3, 2)),
    "one posterior for all": ((4, 3, 8), (4, 3, 8), (2,)),
    "one picture for all": ((8,), (4, 3, 8), (4, 1, 2)),
}


@pytest.mark.parametrize("shapes", SAMPLE_BATCHES.values(), ids=SAMPLE_BATCHES)
@pytest.mark.parametrize("loss", [False, True], ids=["elbo", "elbo_loss"])
def test_batches_broadcast_against_samples(shapes, loss, device, backend):
    target, recon, latent = shapes
    for case, kinds in ((CASES["elbo.bernoulli"], ("target", "logits")), (CASES["elbo.gaussian"], ("location", "location"))):
        tensors = [draw(k, s, device=device) for k, s in zip((*kinds, "location", "logvar"), (target, recon, latent, latent), strict=True)]
        wide = torch.broadcast_shapes(target, recon)

        def plain(x, r, *z, case=case, wide=wide):
            out = case.plain(x.expand(wide), r.expand(wide), *z)
            return -out.mean() if loss else out

        ours = (lambda *t, case=case: case.ours(*t, f=vae_fast.elbo_loss)) if loss else case.ours
        value, grads = value_and_grads(ours, tensors)
        truth, want = value_and_grads(plain, tensors)
        torch.testing.assert_close(value, truth, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(grads, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", [c for c in TERMS if "prior" in c.name], ids=str)
@pytest.mark.parametrize("shapes", [((3, 8), (8,)), ((4, 3, 8), (1, 1)), ((8,), (3, 8)), ((4, 1, 8), (3, 1)), ((3, 1), (1, 8))], ids=str)
def test_priors_broadcast(case, shapes, device, backend):
    posterior, prior = shapes
    tensors = [draw(k, s, device=device) for k, s in zip(case.kinds, (posterior, posterior, prior, prior), strict=True)]
    wide = torch.broadcast_shapes(*shapes)
    value, grads = value_and_grads(case.ours, tensors)
    truth, want = value_and_grads(lambda *t: case.plain(*(v.expand(wide) for v in t)), tensors)
    torch.testing.assert_close(value, truth, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(grads, want, rtol=1e-10, atol=1e-12)
    noise = torch.randn(posterior, dtype=torch.float64, device=device)
    scale = case.name.partition(".")[2]
    z, kl = vae_fast.reparameterize_with_kl(*tensors, noise=noise, scale=scale)
    assert z.shape == posterior
    torch.testing.assert_close(kl, truth, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "shapes", [((5, 7), (7,)), ((5, 7), (5, 1)), ((5, 7), (1, 7)), ((7,), (5, 7)), ((5, 1), (7,)), ((5, 7), ())], ids=str
)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_logsumexp_weights_broadcast(shapes, dim, device, backend):
    a, w = draw("location", shapes[0], device=device), draw("weights", shapes[1], device=device)
    value, grads = value_and_grads(lambda a, w: vae_fast.logsumexp(a, dim, w), [a, w])
    truth, want = value_and_grads(lambda a, w: torch.logsumexp(a + w.log(), dim), [a, w])
    torch.testing.assert_close(value, truth, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(grads, want, rtol=1e-10, atol=1e-12)


# --- upstream gradients -----------------------------------------------------------------------------------------------

UPSTREAMS = {
    "expanded": lambda u: u.flatten()[0].expand(u.shape),
    "transposed": lambda u: u.T.contiguous().T,
    "sliced": lambda u: sliced(u),
    "expanded in one dimension": lambda u: u[:1].expand(u.shape),
    "float64": lambda u: u,
}


@pytest.mark.parametrize("make", UPSTREAMS.values(), ids=UPSTREAMS)
@pytest.mark.parametrize("case", [*ROW_WISE, CASES["logsumexp"], CASES["logsumexp.weights"]], ids=str)
def test_upstream_gradients_of_any_layout(case, make, device):
    tensors = case.tensors((4, 6, 5), (4, 6, 2), torch.float64, device)
    upstream = make(torch.randn(4, 6, dtype=torch.float64, device=device))
    grads = value_and_grads(case.ours, tensors, upstream)[1]
    want = value_and_grads(case.plain, tensors, upstream)[1]
    torch.testing.assert_close(grads, want, rtol=1e-10, atol=1e-12)


def test_upstream_gradients_of_a_sample_of_any_layout(device):
    mu, logvar, noise = (torch.randn(5, 6, device=device) for _ in range(3))
    for make in (lambda u: u[0, 0].expand(5, 6), transposed, sliced, strided, lambda u: u[:, :1].expand(5, 6)):
        u = make(torch.randn(5, 6, device=device))
        _, grads = value_and_grads(lambda m, v: vae_fast.reparameterize(m, v, noise=noise), [mu, logvar], u)
        torch.testing.assert_close(grads[0], u.contiguous(), rtol=0, atol=0)
        torch.testing.assert_close(grads[1], u * 0.5 * (0.5 * logvar).exp() * noise, rtol=1e-6, atol=1e-7)


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [False, True], ids=["elbo", "elbo_loss"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@needs_kernels
def test_channels_last_images_are_summed_without_a_copy(dtype, loss, device):
    mu, logvar = torch.randn(4, 3, device=device), torch.randn(4, 3, device=device)
    x = torch.rand(4, 3, 8, 10, device=device).to(dtype)
    logits = torch.randn(4, 3, 8, 10, device=device).to(dtype)
    f = vae_fast.elbo_loss if loss else vae_fast.elbo

    def run(x, logits):
        logits = logits.detach().requires_grad_()
        out = f(x, logits, mu, logvar, event_dim=3)
        out.sum().backward()
        return out.detach(), logits.grad

    value, grad = run(x, logits)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x, logits)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        other, other_grad = run(*last)
    torch.testing.assert_close(other, value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(other_grad, grad, rtol=0, atol=0)
    assert other_grad.stride() == last[1].stride()
    assert other_grad.is_contiguous(memory_format=torch.channels_last)
    names = {e.name for e in profile.events()}
    assert any("vae_fast" in name for name in names)
    assert not names & {"aten::copy_", "aten::clone", "aten::contiguous", "aten::_to_copy"}


def test_targets_and_logits_in_different_memory_formats(device):
    x, logits = torch.rand(4, 3, 8, 10, device=device), torch.randn(4, 3, 8, 10, device=device)
    truth = vae_fast.bernoulli_log_prob(x, logits, event_dim=3)
    nhwc = torch.channels_last
    for a, b in ((x.contiguous(memory_format=nhwc), logits), (x, logits.contiguous(memory_format=nhwc))):
        leaf = b.detach().requires_grad_()
        value = vae_fast.bernoulli_log_prob(a, leaf, event_dim=3)
        torch.testing.assert_close(value.detach(), truth, rtol=1e-6, atol=1e-6)
        value.sum().backward()
        torch.testing.assert_close(leaf.grad, x - logits.sigmoid(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("event_dim", [1, 2, 3, 4])
def test_permuted_events(event_dim, device):
    """Any order of the event dimensions in memory, also one that differs between the inputs."""
    shape = (2, 3, 4, 5, 6)
    case = CASES["elbo.bernoulli"]
    x, logits = (draw(k, shape, torch.float32, device) for k in ("target", "logits"))
    batch = shape[: 5 - event_dim]
    z = [draw(k, (*batch, 2), torch.float32, device) for k in ("location", "logvar")]
    truth, want = value_and_grads(lambda *t: case.plain(*t, event_dim=event_dim), [x, logits, *z])
    for order in ((0, 2, 3, 4, 1), (4, 3, 2, 1, 0), (0, 1, 3, 2, 4), (1, 0, 4, 2, 3)):
        inverse = torch.tensor(order).argsort().tolist()
        permuted = [t.permute(order).contiguous().permute(inverse) for t in (x, logits)]
        for inputs in ([*permuted, *z], [x, permuted[1], *z], [permuted[0], logits, *z]):
            leaves = [t.detach().requires_grad_() for t in inputs]
            value = case.ours(*leaves, event_dim=event_dim)
            assert_within_contract(value, truth, slack=2e-6)
            value.sum().backward()
            torch.testing.assert_close([t.grad for t in leaves], want, rtol=1e-5, atol=2e-6)


def negative_view(t):
    """A tensor equal to t whose memory holds -t, as the imaginary part of a conjugate does; dense, so that nothing has to copy it."""
    return torch._neg_view(-t)


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("case", ALL, ids=str)
def test_negative_views_keep_their_sign(case, wanted, device):
    tensors = case.tensors((5, 7), (5, 3), torch.float32, device)
    want = case.ours(*tensors)
    for i, t in enumerate(tensors):
        others = [u.clone().requires_grad_(wanted and case not in SAMPLES) for u in tensors]
        view = negative_view(t)
        assert view.is_neg()
        torch.testing.assert_close(case.ours(*others[:i], view, *others[i + 1 :]).detach(), want)


@pytest.mark.parametrize("with_kl", [False, True])
def test_a_negative_view_of_the_noise_keeps_its_sign(with_kl, device):
    mu, logvar, noise = (torch.randn(4, 6, device=device) for _ in range(3))

    def sample(m, s, e):
        return vae_fast.reparameterize_with_kl(m, s, noise=e)[0] if with_kl else vae_fast.reparameterize(m, s, noise=e)

    want, want_grads = value_and_grads(lambda m, s: sample(m, s, noise), [mu, logvar])
    value, grads = value_and_grads(lambda m, s: sample(m, s, negative_view(noise)), [mu, logvar])
    torch.testing.assert_close(value, want)
    torch.testing.assert_close(grads, want_grads)
    torch.testing.assert_close(sample(mu, logvar, negative_view(noise)), want)


def test_negative_views_of_mixture_weights_keep_their_sign(device):
    x, means, log_std = torch.randn(9, 2, device=device), torch.randn(3, 2, device=device), torch.zeros(3, 2, device=device)
    arguments = (x, torch.zeros(3, device=device), means, log_std)
    weights = {"responsibilities": torch.rand(9, 3, device=device), "sample_weight": torch.rand(9, device=device)}
    for given in ({k: t} for k, t in weights.items()):
        want = vae_fast.mixture_statistics(*arguments, **given)
        got = vae_fast.mixture_statistics(*arguments, **{k: negative_view(t) for k, t in given.items()})
        torch.testing.assert_close(got[1:], want[1:])

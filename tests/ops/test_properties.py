"""Random shapes, dtypes, strides and options against the plain-torch formula."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixtures import COVARIANCES, mdn_problem, problem
from oracle import CLIPS, SCALES, draw, needs_kernels

import vae_fast
from vae_fast import reference

pytestmark = needs_kernels
bounded = settings(max_examples=150, deadline=None, derandomize=True, database=None)
FLOATS = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
SIZES = st.integers(0, 9)


@st.composite
def problems(draw_from, kinds, event_broadcasts=True):
    """Tensors of the given kinds whose shapes broadcast, of any dtype and memory order, and event_dim."""
    shape = draw_from(st.lists(SIZES, min_size=0, max_size=4))
    event_dim = draw_from(st.integers(0, len(shape)))
    tensors = []
    lead = len(shape) - event_dim
    for i, kind in enumerate(kinds):
        own = [1 if i > 0 and (d < lead or event_broadcasts) and draw_from(st.booleans()) else n for d, n in enumerate(shape)]
        if i > 0 and all(n == 1 for n in own[:lead]):
            own = own[draw_from(st.integers(0, lead)) :]
        order = draw_from(st.permutations(range(len(own))))
        inverse = sorted(range(len(own)), key=list(order).__getitem__)
        t = draw(kind, [own[d] for d in order], draw_from(FLOATS)).permute(inverse)
        if own and draw_from(st.booleans()):
            t = torch.stack([t, t], -1)[..., draw_from(st.integers(0, 1))]  # every second element
        tensors.append(t)
    return tensors, event_dim


def gradients(f, tensors, upstream=None):
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = f(*leaves)
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape) if upstream is None else upstream)
    return out.detach(), [t.grad for t in leaves]


def agree(ours, wide, tensors):
    """The value and gradients of ``ours``, on the tensors as they are, against ``wide`` on float64 copies."""
    value, grads = gradients(ours, tensors)
    truth, want = gradients(wide, [t.double() for t in tensors])
    double = torch.float64 in [t.dtype for t in tensors]
    assert value.dtype == (torch.float64 if double else torch.float32)
    tolerance = 1e-9 if double else 5e-5
    torch.testing.assert_close(value.double(), truth, rtol=tolerance, atol=tolerance)
    for t, g, w in zip(tensors, grads, want, strict=True):
        assert (g.shape, g.dtype) == (t.shape, t.dtype)
        rounding = max(torch.finfo(t.dtype).eps, tolerance)
        typical = w.abs().max().item() if w.numel() else 0.0
        smallest = torch.finfo(t.dtype).smallest_normal * torch.finfo(t.dtype).eps
        torch.testing.assert_close(g.double(), w, rtol=rounding, atol=tolerance * (1 + typical) + smallest)


@bounded
@given(st.data())
def test_kl(data):
    scale, prior = data.draw(st.sampled_from(SCALES)), data.draw(st.booleans())
    tensors, event_dim = data.draw(problems(("location", scale) * (1 + prior)))
    free_bits = data.draw(st.sampled_from([None, 0.0, 0.25]))
    if prior and free_bits is not None:
        free_bits = None  # at random the prior meets the floor exactly in some dtypes only
    name, floor = f"kl{'_prior' * prior}.{scale}", -math.inf if free_bits is None else free_bits
    agree(
        lambda *t: vae_fast.gaussian_kl(*t, scale=scale, event_dim=event_dim, free_bits=free_bits),
        lambda *t: reference.term(name, t, [floor], event_dim),
        tensors,
    )


@bounded
@given(st.data())
def test_bernoulli(data):
    space, clip = data.draw(st.sampled_from(["logits", "probs"])), data.draw(st.sampled_from(CLIPS))
    tensors, event_dim = data.draw(problems(("target", space), event_broadcasts=False))
    agree(
        lambda x, t: vae_fast.bernoulli_log_prob(x, **{space: t}, clip=clip, eps=1e-4, event_dim=event_dim),
        lambda x, t: reference.term(f"bernoulli_{space}.{clip or 'none'}", [x, t], [1e-4], event_dim),
        tensors,
    )


@bounded
@given(st.data())
def test_gaussian(data):
    scale = data.draw(st.sampled_from([None, *SCALES]))
    tensors, event_dim = data.draw(problems(("location", "location", *([scale] if scale else [])), event_broadcasts=False))
    agree(
        lambda *t: vae_fast.gaussian_log_prob(*t, scale=scale or "logvar", event_dim=event_dim),
        lambda *t: reference.term(f"gaussian.{scale}" if scale else "gaussian_unit", t, [], event_dim),
        tensors,
    )


@bounded
@given(st.data())
def test_elbo_and_its_loss(data):
    (x, logits), event_dim = data.draw(problems(("target", "logits"), event_broadcasts=False))
    batch = torch.broadcast_shapes(x.shape, logits.shape)
    batch = batch[: len(batch) - event_dim]
    latent = data.draw(st.lists(SIZES, min_size=0, max_size=2))
    mu, logvar = (draw(k, (*batch, *latent), data.draw(FLOATS)) for k in ("location", "logvar"))
    reduction = data.draw(st.sampled_from(["elbo", "none", "sum", *([] if 0 in batch else ["mean"])]))
    beta = data.draw(st.sampled_from([1.0, 0.0, 2.5]))
    options = {"beta": beta, "event_dim": event_dim, "latent_dim": len(latent)}

    def ours(*t):
        return vae_fast.elbo(*t, **options) if reduction == "elbo" else vae_fast.elbo_loss(*t, reduction=reduction, **options)

    def wide(*t):
        out = reference.elbo(t[:2], t[2:], "bernoulli_logits.none", [], "kl.logvar", -math.inf, beta, event_dim, len(latent))
        return out if reduction == "elbo" else reference.reduce(-out, reduction)

    agree(ours, wide, [x, logits, mu, logvar])


@bounded
@given(st.data())
def test_logsumexp(data):
    tensors, _ = data.draw(problems(("location", "weights")))
    a, w = tensors if data.draw(st.booleans()) else tensors[::-1]
    shape = torch.broadcast_shapes(a.shape, w.shape)
    if not shape or 0 in shape:
        return
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    agree(lambda a, w: vae_fast.logsumexp(a, dim, w.abs()), lambda a, w: reference.logsumexp(a, dim, w.abs()), [a, w])
    if a.shape == shape:
        agree(lambda a: vae_fast.logsumexp(a, dim), lambda a: torch.logsumexp(a, dim), [a])


@bounded
@given(st.data())
def test_samples(data):
    scale = data.draw(st.sampled_from(SCALES))
    (mu, s), event_dim = data.draw(problems(("location", scale)))
    num_samples = data.draw(st.sampled_from([None, 1, 3]))
    shape = torch.broadcast_shapes(mu.shape, s.shape)
    noise = torch.randn(shape if num_samples is None else (num_samples, *shape))

    def ours(m, t):
        z, kl = vae_fast.reparameterize_with_kl(m, t, scale=scale, num_samples=num_samples, noise=noise, event_dim=event_dim)
        assert z.dtype == torch.promote_types(m.dtype, t.dtype)
        return z.to(torch.float64 if torch.float64 in (m.dtype, t.dtype) else torch.float32).sum() * 0.01 + kl.sum()

    leaves = [t.detach().requires_grad_() for t in (mu, s)]
    wide = [t.detach().double().requires_grad_() for t in (mu, s)]
    z = reference.reparameterize(*wide, scale, num_samples, noise)
    truth = z.sum() * 0.01 + reference.term(f"kl.{scale}", wide, [-math.inf], event_dim).sum()
    value = ours(*leaves)
    value.backward()
    truth.backward()
    tolerance = max(5e-5, torch.finfo(torch.promote_types(mu.dtype, s.dtype)).eps)  # z is rounded to its dtype
    torch.testing.assert_close(value.detach().double(), truth.detach(), rtol=tolerance, atol=tolerance)
    for t, w in zip(leaves, wide, strict=True):
        rounding = max(torch.finfo(t.dtype).eps, 5e-5)
        typical = w.grad.abs().max().item() if w.numel() else 0.0
        torch.testing.assert_close(t.grad.double(), w.grad, rtol=rounding, atol=5e-5 * (1 + typical))


@st.composite
def views(draw_from, tensors):
    """The tensors in any dtype and memory order, or as every second element of larger ones."""
    found = []
    for t in tensors:
        order = draw_from(st.permutations(range(t.ndim)))
        inverse = sorted(range(t.ndim), key=list(order).__getitem__)
        v = t.to(draw_from(FLOATS)).permute(order).contiguous().permute(inverse)
        found.append(torch.stack([v, v], -1)[..., draw_from(st.integers(0, 1))] if draw_from(st.booleans()) else v)
    return found


@bounded
@given(st.data())
def test_mixtures(data):
    covariance_type = data.draw(st.sampled_from(COVARIANCES))
    batch = data.draw(st.lists(SIZES, min_size=0, max_size=3))
    k, d = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 9))
    tensors = data.draw(views(problem(batch, k, d, covariance_type)))
    if data.draw(st.booleans()):
        ours, wide = vae_fast.mixture_log_prob, reference.mixture_log_prob
    else:
        ours, wide = vae_fast.mixture_responsibilities, reference.mixture_responsibilities
    agree(lambda *t: ours(*t, covariance_type=covariance_type), lambda *t: wide(*t, covariance_type), tensors)


@bounded
@given(st.data())
def test_density_networks(data):
    batch = data.draw(st.lists(SIZES, min_size=0, max_size=3))
    k, d = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    shared = data.draw(st.booleans())
    y, *parameters = mdn_problem(batch, k, d, shared)
    if batch and data.draw(st.booleans()):  # one network output for all targets of a row
        parameters = [t[:, :1] if len(batch) > 1 else t[:1] for t in parameters]
    floor = data.draw(st.sampled_from([0.0, 0.05]))
    tensors = data.draw(views([y, *parameters]))
    agree(
        lambda *t: vae_fast.mdn_log_prob(*t, min_scale=floor),
        lambda *t: reference.mdn_log_prob(*t, math.log(floor) if floor else -math.inf),
        tensors,
    )

"""What the op tests compare with: every function once more, in the words of torch.distributions and torch.nn.functional.

Each formula runs in the dtype it is given: in float64 it is the truth, in float32 it is the plain formula whose error the kernels may
not exceed. Nothing here is shared with the package.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

import vae_fast
from vae_fast import _backend

needs_kernels = pytest.mark.skipif(_backend.C is None, reason="the extension was not built")

SCALES = ("logvar", "log_std", "std", "var", "softplus")
CLIPS = (None, "clamp", "add", "bce")
EPS = 1e-3  # large enough that clipping happens in random data


def std_of(t, scale):
    forms = {"logvar": lambda: (0.5 * t).exp(), "log_std": t.exp, "std": lambda: t, "var": t.sqrt, "softplus": lambda: t.exp().log1p()}
    return forms[scale]()


def total(t, event_dim):
    return t.sum(dim=tuple(range(-event_dim, 0))) if event_dim else t


# --- the plain formulas -----------------------------------------------------------------------------------------------


def kl_elements(mu, s, prior_mu=None, prior_s=None, scale="logvar"):
    q = Normal(mu, std_of(s, scale), validate_args=False)
    prior_mu = torch.zeros_like(mu) if prior_mu is None else prior_mu
    prior_std = torch.ones_like(mu) if prior_s is None else std_of(prior_s, scale)
    return kl_divergence(q, Normal(prior_mu, prior_std, validate_args=False))


def gaussian_kl(*tensors, scale="logvar", event_dim=1, free_bits=None):
    kl = kl_elements(*tensors, scale=scale)
    return total(kl if free_bits is None else kl.clamp(min=free_bits), event_dim)


def bernoulli_logits(x, a, clip=None, eps=EPS, event_dim=1):
    if clip is None:
        out = -F.binary_cross_entropy_with_logits(*torch.broadcast_tensors(a, x), reduction="none")
    elif clip == "clamp":
        bound = math.log((1 - eps) / eps)
        out = -F.binary_cross_entropy_with_logits(*torch.broadcast_tensors(a.clamp(-bound, bound), x), reduction="none")
    elif clip == "add":
        out = x * (a.sigmoid() + eps).log() + (1 - x) * ((-a).sigmoid() + eps).log()
    else:
        out = x * F.logsigmoid(a).clamp(min=-100) + (1 - x) * F.logsigmoid(-a).clamp(min=-100)
    return total(out, event_dim)


def bernoulli_probs(x, p, clip=None, eps=EPS, event_dim=1):
    if clip is None:
        out = torch.xlogy(x, p) + torch.special.xlog1py(1 - x, -p)
    elif clip == "clamp":
        c = p.clamp(eps, 1 - eps)
        out = torch.xlogy(x, c) + torch.special.xlog1py(1 - x, -c)
    elif clip == "add":
        out = x * (p + eps).log() + (1 - x) * (1 - p + eps).log()
    else:
        p, x = torch.broadcast_tensors(p, x)
        out = -F.binary_cross_entropy(p, x, reduction="none")
    return total(out, event_dim)


def gaussian_log_prob(x, mu, s=None, scale="logvar", event_dim=1):
    std = torch.ones_like(mu) if s is None else std_of(s, scale)
    return total(Normal(mu, std, validate_args=False).log_prob(x), event_dim)


def laplace_log_prob(x, loc, s, scale="log_std", event_dim=1):
    return total(torch.distributions.Laplace(loc, std_of(s, scale), validate_args=False).log_prob(x), event_dim)


def poisson_log_prob(x, rate, event_dim=1):
    return total(torch.distributions.Poisson(rate, validate_args=False).log_prob(x.to(rate.dtype)), event_dim)


def negative_binomial_elements(x, mu, theta):
    logits = mu.log() - theta.log()
    return torch.distributions.NegativeBinomial(theta, logits=logits, validate_args=False).log_prob(x.to(torch.result_type(mu, theta)))


def negative_binomial_log_prob(x, mu, theta, event_dim=1):
    return total(negative_binomial_elements(x, mu, theta), event_dim)


def zero_inflated_negative_binomial_log_prob(x, mu, theta, logits, event_dim=1):
    counted = negative_binomial_elements(x, mu, theta) + F.logsigmoid(-logits)
    return total(torch.where(x == 0, torch.logaddexp(F.logsigmoid(logits), counted), counted), event_dim)


def log_normal_log_prob(x, loc, s, scale="log_std", event_dim=1):
    return total(torch.distributions.LogNormal(loc, std_of(s, scale), validate_args=False).log_prob(x), event_dim)


def continuous_bernoulli_log_prob(x, a, event_dim=1):
    """x a - log((e^a - 1) / a), where torch.distributions loses half of its digits next to a = 0."""
    half = 0.5 * a.masked_fill(a.abs() < 0.5, 1.0)
    far = (half.sinh() / half).log()
    u = a * a
    series = (1 / 24, -1 / 2880, 1 / 181440, -1 / 9676800, 1 / 479001600, -691 / 15692092416000, 1 / 1046139494400)
    near = sum(c * u ** (k + 1) for k, c in enumerate(series))
    return total((x - 0.5) * a - torch.where(a.abs() < 0.5, near, far), event_dim)


def student_t_log_prob(x, df, loc, s, scale="log_std", event_dim=1):
    return total(torch.distributions.StudentT(df, loc, std_of(s, scale), validate_args=False).log_prob(x), event_dim)


def elbo(
    x,
    recon,
    mu,
    logvar,
    *prior,
    likelihood="bernoulli",
    clip=None,
    eps=EPS,
    beta=1.0,
    scale="logvar",
    free_bits=None,
    event_dim=1,
    latent_dim=1,
):
    if likelihood == "gaussian":
        recon = recon if isinstance(recon, tuple) else (recon,)
        log_prob = gaussian_log_prob(x, *recon, event_dim=event_dim)
    elif likelihood == "laplace":
        log_prob = laplace_log_prob(x, *recon, event_dim=event_dim)
    elif likelihood == "log_normal":
        log_prob = log_normal_log_prob(x, *recon, event_dim=event_dim)
    elif likelihood == "continuous_bernoulli":
        log_prob = continuous_bernoulli_log_prob(x, recon, event_dim=event_dim)
    elif likelihood == "student_t":
        log_prob = student_t_log_prob(x, *recon, event_dim=event_dim)
    else:
        formula = bernoulli_logits if likelihood == "bernoulli" else bernoulli_probs
        log_prob = formula(x, recon, clip, eps, event_dim)
    return log_prob - beta * gaussian_kl(mu, logvar, *prior, scale=scale, free_bits=free_bits, event_dim=latent_dim)


def logsumexp(a, weights=None, dim=-1):
    return torch.logsumexp(a if weights is None else a + weights.log(), dim)


# --- one case per function and variant --------------------------------------------------------------------------------

_DRAWS = {
    "location": lambda shape: torch.randn(shape) * 1.5,
    "positive": lambda shape: (0.5 * torch.randn(shape)).exp(),
    "df": lambda shape: torch.randn(shape).exp() * 4.0,
    "logvar": lambda shape: torch.randn(shape),
    "log_std": lambda shape: torch.randn(shape) * 0.5,
    "std": lambda shape: torch.rand(shape) + 0.3,
    "var": lambda shape: torch.rand(shape) + 0.3,
    "softplus": lambda shape: torch.randn(shape),
    "target": lambda shape: torch.rand(shape),
    "logits": lambda shape: torch.randn(shape) * 3.0,
    "probs": lambda shape: torch.rand(shape) * 0.98 + 0.01,
    "weights": lambda shape: torch.rand(shape) + 0.1,
    "rate": lambda shape: torch.rand(shape) * 5.0 + 0.1,
    "log_rate": lambda shape: torch.randn(shape),
    "theta": lambda shape: torch.rand(shape) * 3.0 + 0.2,
}

_COUNTS = (0, 0, 3, 0, 1, 0, 0, 17, 0, 0, 2, 0, 150)


def counts_for(*parameters):
    """Counts beside parameters: by the place in the last dimension alone, so that a part of a batch has those of the whole."""
    shape = torch.broadcast_shapes(*(t.shape for t in parameters))
    n = shape[-1] if shape else 1
    return torch.tensor(_COUNTS, device=parameters[0].device).repeat(n // len(_COUNTS) + 1)[:n].expand(shape if shape else (1,)).view(shape)


def draw(kind, shape, dtype=torch.float64, device="cpu"):
    """Random values that are the same whatever the dtype and device, and exact in all floats at least as wide as ``dtype``."""
    return _DRAWS[kind](shape).to(device, dtype)


@dataclass(frozen=True)
class Case:
    """A public function with everything but its tensors chosen, and the plain formula for it."""

    name: str
    kinds: tuple[str, ...]  # of the tensors, for `draw`
    ours: Callable
    plain: Callable
    latent: int = 0  # how many of the last tensors have the latent event shape

    def tensors(self, shape, latent_shape=None, dtype=torch.float64, device="cpu"):
        latent_shape = shape if latent_shape is None else latent_shape
        first_latent = len(self.kinds) - self.latent
        return [draw(k, latent_shape if i >= first_latent else shape, dtype, device) for i, k in enumerate(self.kinds)]

    def __str__(self):
        return self.name


def _kl(scale, prior):
    kinds = ("location", scale) * (2 if prior else 1)
    return Case(
        f"kl{'_prior' * prior}.{scale}",
        kinds,
        lambda *t, **kw: vae_fast.gaussian_kl(*t, scale=scale, **kw),
        lambda *t, **kw: gaussian_kl(*t, scale=scale, **kw),
    )


def _bernoulli(space, clip):
    formula = bernoulli_logits if space == "logits" else bernoulli_probs
    return Case(
        f"bernoulli_{space}.{clip or 'none'}",
        ("target", space),
        lambda x, t, **kw: vae_fast.bernoulli_log_prob(x, **{space: t}, clip=clip, **({"eps": EPS} | kw)),
        lambda x, t, **kw: formula(x, t, clip, **kw),
    )


def _gaussian(scale):
    return Case(
        f"gaussian.{scale or 'unit'}",
        ("location", "location", *([scale] if scale else [])),
        lambda *t, **kw: vae_fast.gaussian_log_prob(*t, scale=scale or "logvar", **kw),
        lambda *t, **kw: gaussian_log_prob(*t, scale=scale or "logvar", **kw),
    )


def _laplace(scale):
    return Case(
        f"laplace.{scale}",
        ("location", "location", scale),
        lambda *t, **kw: vae_fast.laplace_log_prob(*t, scale=scale, **kw),
        lambda *t, **kw: laplace_log_prob(*t, scale=scale, **kw),
    )


def _counts(name, kinds, ours, plain):
    return Case(name, kinds, lambda *t, **kw: ours(counts_for(*t), *t, **kw), lambda *t, **kw: plain(counts_for(*t), *t, **kw))


COUNTS = [
    _counts("poisson.rate", ("rate",), lambda x, r, **kw: vae_fast.poisson_log_prob(x, r, **kw), poisson_log_prob),
    _counts(
        "poisson.log_rate",
        ("log_rate",),
        lambda x, r, **kw: vae_fast.poisson_log_prob(x, log_rate=r, **kw),
        lambda x, r, **kw: poisson_log_prob(x, r.exp(), **kw),
    ),
    _counts(
        "negative_binomial.linear",
        ("rate", "theta"),
        lambda *t, **kw: vae_fast.negative_binomial_log_prob(*t, **kw),
        negative_binomial_log_prob,
    ),
    _counts(
        "negative_binomial.log",
        ("log_rate", "log_rate"),
        lambda *t, **kw: vae_fast.negative_binomial_log_prob(*t, space="log", **kw),
        lambda x, mu, theta, **kw: negative_binomial_log_prob(x, mu.exp(), theta.exp(), **kw),
    ),
    _counts(
        "zero_inflated_negative_binomial.linear",
        ("rate", "theta", "logits"),
        lambda *t, **kw: vae_fast.zero_inflated_negative_binomial_log_prob(*t, **kw),
        zero_inflated_negative_binomial_log_prob,
    ),
    _counts(
        "zero_inflated_negative_binomial.log",
        ("log_rate", "log_rate", "logits"),
        lambda *t, **kw: vae_fast.zero_inflated_negative_binomial_log_prob(*t, space="log", **kw),
        lambda x, mu, theta, logits, **kw: zero_inflated_negative_binomial_log_prob(x, mu.exp(), theta.exp(), logits, **kw),
    ),
]


def _log_normal(scale):
    return Case(
        f"log_normal.{scale}",
        ("positive", "location", scale),
        lambda *t, **kw: vae_fast.log_normal_log_prob(*t, scale=scale, **kw),
        lambda *t, **kw: log_normal_log_prob(*t, scale=scale, **kw),
    )


def _student_t(scale):
    return Case(
        f"student_t.{scale}",
        ("location", "df", "location", scale),
        lambda *t, **kw: vae_fast.student_t_log_prob(*t, scale=scale, **kw),
        lambda *t, **kw: student_t_log_prob(*t, scale=scale, **kw),
    )


TERMS = [
    *(_kl(scale, prior) for prior in (False, True) for scale in SCALES),
    *(_bernoulli(space, clip) for space in ("logits", "probs") for clip in CLIPS),
    *(_gaussian(scale) for scale in (None, *SCALES)),
    *(_laplace(scale) for scale in SCALES),
    *COUNTS,
    *(_log_normal(scale) for scale in SCALES),
    Case("continuous_bernoulli", ("target", "logits"), vae_fast.continuous_bernoulli_log_prob, continuous_bernoulli_log_prob),
    *(_student_t(scale) for scale in SCALES),
]


def _elbo(name, kinds, prior=False, **options):
    several = len(kinds) > 2
    recons = len(kinds) - 1

    def split(t):
        recon = tuple(t[1 : 1 + recons]) if several else t[1]
        return t[0], recon, *t[1 + recons :]

    def ours(*t, f=vae_fast.elbo, **kw):
        x, recon, mu, logvar, *priors = split(t)
        named = dict(zip(("prior_mu", "prior_logvar"), priors, strict=False))
        return f(x, recon, mu, logvar, **named, **({"eps": EPS} | options | kw))

    latent = 4 if prior else 2
    latents = ("location", options.get("scale", "logvar")) * (latent // 2)
    return Case(name, (*kinds, *latents), ours, lambda *t, **kw: elbo(*split(t), **(options | kw)), latent)


ELBOS = [
    _elbo("elbo.bernoulli", ("target", "logits")),
    _elbo("elbo.bernoulli.beta", ("target", "logits"), beta=0.3),
    _elbo("elbo.bernoulli.clamp.prior", ("target", "logits"), prior=True, clip="clamp"),
    _elbo("elbo.bernoulli.free_bits", ("target", "logits"), free_bits=0.3),
    _elbo("elbo.probs", ("target", "probs"), likelihood="bernoulli_probs"),
    _elbo("elbo.probs.clamp", ("target", "probs"), likelihood="bernoulli_probs", clip="clamp"),
    _elbo("elbo.probs.add", ("target", "probs"), likelihood="bernoulli_probs", clip="add"),
    _elbo("elbo.probs.bce.prior", ("target", "probs"), prior=True, likelihood="bernoulli_probs", clip="bce", beta=4.0),
    _elbo("elbo.gaussian", ("location", "location"), likelihood="gaussian"),
    _elbo("elbo.gaussian.pair.prior", ("location", "location", "logvar"), prior=True, likelihood="gaussian", free_bits=0.1, beta=2.0),
    _elbo("elbo.laplace", ("location", "location", "log_std"), likelihood="laplace"),
    *(_elbo(f"elbo.{scale}", ("target", "logits"), scale=scale) for scale in ("log_std", "var")),
    _elbo("elbo.gaussian.std.prior", ("location", "location", "logvar"), prior=True, likelihood="gaussian", scale="std", beta=2.0),
    _elbo("elbo.softplus.prior", ("target", "logits"), prior=True, scale="softplus", free_bits=0.1),
    _elbo("elbo.log_normal", ("positive", "location", "log_std"), likelihood="log_normal"),
    _elbo("elbo.continuous_bernoulli", ("target", "logits"), likelihood="continuous_bernoulli"),
    _elbo("elbo.student_t", ("location", "df", "location", "log_std"), likelihood="student_t"),
]

LOGSUMEXPS = [
    Case("logsumexp", ("location",), lambda a, dim=-1: vae_fast.logsumexp(a, dim), lambda a, dim=-1: logsumexp(a, None, dim)),
    Case("logsumexp.weights", ("location", "weights"), lambda a, w, dim=-1: vae_fast.logsumexp(a, dim, w), logsumexp),
    Case(
        "iwae_bound",
        ("location",),
        lambda a, dim=0: vae_fast.iwae_bound(a, dim),
        lambda a, dim=0: logsumexp(a, None, dim) - math.log(a.shape[dim]),
    ),
]


def _sample(scale):
    def ours(mu, s, noise, **kw):
        return vae_fast.reparameterize(mu, s, noise=noise, scale=scale, **kw)

    return Case(f"reparameterize.{scale}", ("location", scale, "location"), ours, lambda mu, s, noise: mu + std_of(s, scale) * noise)


SAMPLES = [_sample(scale) for scale in SCALES]
ALL = [*TERMS, *ELBOS, *LOGSUMEXPS, *SAMPLES]
CASES = {case.name: case for case in ALL}


# --- comparing --------------------------------------------------------------------------------------------------------


def relative_error(value, truth):
    """The greatest error, relative to the element or, for elements near zero, to the typical one; infinities have to agree."""
    value, truth = value.detach().double(), truth.detach().double()
    finite = truth.isfinite()
    assert torch.equal(value[~finite], truth[~finite])
    value, truth = value[finite], truth[finite]
    if not truth.numel():
        return 0.0
    scale = truth.abs().clamp(min=truth.square().mean().sqrt().clamp(min=1e-300))
    return ((value - truth).abs() / scale).max().item()


def assert_within_contract(value, truth, plain=None, slack=1e-6):
    """Error no larger than that of the plain float32 formula, plus 1e-6 relative."""
    assert value.shape == truth.shape
    assert not value.isnan().any()
    allowed = slack + (0.0 if plain is None else relative_error(plain, truth))
    error = relative_error(value, truth)
    assert error <= allowed, f"relative error {error:.3g}, allowed {allowed:.3g}"


def assert_refused(call, kind, words):
    """The call raises ``kind`` with one line that holds every one of ``words``; returns the message."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is kind
    for word in words:
        pattern = re.escape(word) if len(word) > 2 else rf"\b{word}\b"
        assert re.search(pattern, message), f"{word!r} is not in: {message}"
    assert "\n" not in message
    return message


def leaves(tensors, wanted=None):
    """Detached copies that require gradients (all of them, or those marked in ``wanted``)."""
    wanted = [True] * len(tensors) if wanted is None else wanted
    return [t.detach().clone(memory_format=torch.preserve_format).requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)]


def value_and_grads(f, tensors, upstream=None, wanted=None):
    """``f(*tensors)`` and the gradients of the tensors given the upstream gradient (ones by default)."""
    tensors = leaves(tensors, wanted)
    out = f(*tensors)
    upstream = torch.ones_like(out) if upstream is None else upstream.to(out.device, out.dtype)
    out.backward(upstream)
    return out.detach(), [t.grad for t in tensors]

"""What the mixture tests compare with: mixtures in the words of torch.distributions, random problems, and cases for the common tests."""

import math
from dataclasses import dataclass

import torch
from oracle import Case, value_and_grads
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

import vae_fast

COVARIANCES = ("diag", "spherical", "tied", "full")
ARGUMENTS = ("x", "weight_logits", "means", "scale")
LOG_2PI = math.log(2 * math.pi)


# --- the plain formulas -----------------------------------------------------------------------------------------------


class _Direct:
    """A Gaussian by its precision's Cholesky factor, without inverting it: what plain float32 code would do."""

    def __init__(self, means, factor):
        self.means, self.factor = means, factor

    def log_prob(self, x):
        u = torch.einsum("...kd,kde->...ke", x - self.means, self.factor)
        log_det = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return log_det - 0.5 * (u.square().sum(-1) + x.shape[-1] * LOG_2PI)


def inverse(factor):
    """Of an upper triangular factor."""
    return torch.linalg.solve_triangular(factor, torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device), upper=True)


def components(means, scale, covariance_type):
    """The K components as a distribution over the last dimension."""
    if covariance_type == "diag":
        return Independent(Normal(means, scale.exp(), validate_args=False), 1, validate_args=False)
    if covariance_type == "spherical":
        return components(means, scale[:, None].expand_as(means), "diag")
    factor = scale.triu()
    if covariance_type == "tied":
        factor = factor.expand(len(means), *factor.shape)
    if means.dtype != torch.float64:
        return _Direct(means, factor)
    return MultivariateNormal(means, scale_tril=inverse(factor).mT, validate_args=False)


def log_prob(x, logits, means, scale, covariance_type="diag"):
    if x.numel() == 0:
        return x.sum(-1)  # torch.distributions does not take empty batches
    parts = components(means, scale, covariance_type)
    if isinstance(parts, _Direct):
        return torch.logsumexp(parts.log_prob(x.unsqueeze(-2)) + logits.log_softmax(-1), -1)
    return MixtureSameFamily(Categorical(logits=logits, validate_args=False), parts, validate_args=False).log_prob(x)


def responsibilities(x, logits, means, scale, covariance_type="diag"):
    if x.numel() == 0:
        return x.sum(-1, keepdim=True) + logits
    return (components(means, scale, covariance_type).log_prob(x.unsqueeze(-2)) + logits).softmax(-1)


def mdn_log_prob(y, logits, means, log_scale, min_scale=0.0):
    if log_scale.ndim < means.ndim:
        log_scale = log_scale.unsqueeze(-1)
    shape = torch.broadcast_shapes(means.shape, log_scale.shape)
    std = log_scale.exp().clamp(min=min_scale).expand(shape)
    batch = torch.broadcast_shapes(logits.shape[:-1], shape[:-2])
    if 0 in (*batch, *y.shape):
        return (y.sum(-1) + logits.sum(-1) + (means + log_scale).sum((-1, -2))) * 0.0  # as above
    parts = Independent(Normal(means.expand(*batch, *shape[-2:]), std.expand(*batch, *shape[-2:]), validate_args=False), 1)
    mix = Categorical(logits=logits.expand(*batch, logits.shape[-1]), validate_args=False)
    return MixtureSameFamily(mix, parts, validate_args=False).log_prob(y)


# --- random problems --------------------------------------------------------------------------------------------------


def problem(batch, k, d, covariance_type="diag", dtype=torch.float64, device="cpu", offset=0.0, separation=2.0):
    """x drawn from a mixture whose components overlap in any number of dimensions, and its logits, means and scale.

    Below their diagonals the factors hold numbers that nothing may read.
    """
    batch = (batch,) if isinstance(batch, int) else tuple(batch)
    wide = {"dtype": torch.float64}
    logits = torch.randn(k, **wide)
    means = offset + torch.randn(k, d, **wide) * separation / d**0.5
    which, noise = torch.randint(k, batch), torch.randn(*batch, d, **wide)
    if covariance_type in ("diag", "spherical"):
        scale = 0.2 + 0.7 / d**0.5 * torch.randn((k, d) if covariance_type == "diag" else (k,), **wide)
        x = means[which] + noise * (scale if covariance_type == "diag" else scale[:, None]).exp()[which]
    else:
        shape = (d, d) if covariance_type == "tied" else (k, d, d)
        scale = torch.randn(shape, **wide) * 0.5 / d**0.5
        scale.diagonal(dim1=-2, dim2=-1).add_(-0.2).exp_()
        whiten = inverse(scale.triu())
        whiten = whiten if covariance_type == "tied" else whiten[which]
        x = means[which] + (noise.unsqueeze(-2) @ whiten).squeeze(-2)
    return [t.to(device, dtype) for t in (x, logits, means, scale)]


def mdn_problem(batch, k, d, shared=False, dtype=torch.float64, device="cpu"):
    """Targets and parameters, a mixture for each of them."""
    batch = (batch,) if isinstance(batch, int) else tuple(batch)
    means = torch.randn(*batch, k, d, dtype=torch.float64) * 2 / d**0.5
    log_scale = 0.2 + 0.7 / d**0.5 * torch.randn((*batch, k) if shared else (*batch, k, d), dtype=torch.float64)
    y, logits = torch.randn(*batch, d, dtype=torch.float64), torch.randn(*batch, k, dtype=torch.float64)
    return [t.to(device, dtype) for t in (y, logits, means, log_scale)]


# --- cases of the common tests ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MixtureCase(Case):
    """A mixture function whose rows have the given shape; three components."""

    form: str = ""

    def tensors(self, shape, latent_shape=None, dtype=torch.float64, device="cpu"):
        *batch, d = shape
        if self.form in COVARIANCES:
            return problem(batch, 3, d, self.form, dtype, device)
        return mdn_problem(batch, 3, d, self.form == "shared", dtype, device)

    def __str__(self):
        return self.name


def _mixture(covariance_type):
    return MixtureCase(
        f"mixture.{covariance_type}",
        ARGUMENTS,
        lambda *t, **kw: vae_fast.mixture_log_prob(*t, covariance_type=covariance_type, **kw),
        lambda *t: log_prob(*t, covariance_type),
        form=covariance_type,
    )


def _ramp(q):
    """Component k times k: the sum over components, 1 whatever the arguments, would have no gradient to speak of."""
    return q * torch.arange(1, q.shape[-1] + 1, dtype=q.dtype, device=q.device)


def _responsibilities(covariance_type):
    return MixtureCase(
        f"responsibilities.{covariance_type}",
        ARGUMENTS,
        lambda *t: _ramp(vae_fast.mixture_responsibilities(*t, covariance_type=covariance_type)),
        lambda *t: _ramp(responsibilities(*t, covariance_type)),
        form=covariance_type,
    )


LOG_PROBS = [_mixture(c) for c in COVARIANCES]
RESPONSIBILITIES = [_responsibilities(c) for c in COVARIANCES]
MDNS = [
    MixtureCase(f"mdn{suffix}", ARGUMENTS, lambda *t, **kw: vae_fast.mdn_log_prob(*t, **kw), mdn_log_prob, form=form)
    for suffix, form in (("", "own"), (".shared", "shared"))
]
MIXTURES = [*LOG_PROBS, *RESPONSIBILITIES, *MDNS]
MIXTURE_CASES = {case.name: case for case in MIXTURES}


# --- comparing --------------------------------------------------------------------------------------------------------


def gradient_errors(got, want):
    """Of a whole tensor: the norm of the error relative to the norm, and the worst error relative to the largest element."""
    return pooled_errors([got], [want])


def pooled_errors(got, want):
    """The same of one tensor over several problems: a mean in which no single lucky or nearly vanishing gradient decides."""
    squares = torch.zeros(4, dtype=torch.float64)
    for g, w in zip(got, want, strict=True):
        g, w = g.detach().double().cpu(), w.detach().double().cpu()
        assert g.shape == w.shape
        assert g.isfinite().all()
        assert w.isfinite().all()
        worst, largest = ((t.abs().max() if t.numel() else t.sum()) for t in (g - w, w))
        squares += torch.stack([(g - w).norm(), w.norm(), worst, largest]).square()
    error, norm, worst, largest = squares.sqrt().tolist()
    return error / norm if norm else math.inf * error if error else 0.0, worst / largest if largest else math.inf * worst if worst else 0.0


def assert_gradient_within_contract(got, want, plain=None, slack=1e-6, what=""):
    """Error no larger than that of the plain float32 formula, plus 1e-6: of the norm, and of the worst element."""
    assert_gradients_within_contract([got], [want], None if plain is None else [plain], slack, what)


def assert_gradients_within_contract(got, want, plain=None, slack=1e-6, what=""):
    """The same over several problems; see :func:`pooled_errors`."""
    errors = pooled_errors(got, want)
    allowed = [slack + e for e in ((0.0, 0.0) if plain is None else pooled_errors(plain, want))]
    for kind, error, limit in zip(("norm", "worst"), errors, allowed, strict=True):
        assert error <= limit, f"{what}: relative error ({kind}) {error:.3g}, allowed {limit:.3g}"


def each_once():
    """Results of every case, and what they should be."""
    results = {}
    for case in MIXTURES:
        for shape in ((301, 5), (70, 37), (33, 1)):
            for dtype in (torch.float32, torch.float64):
                tensors = case.tensors(shape, dtype=dtype)
                value, grads = value_and_grads(case.ours, tensors)
                truth, want = value_and_grads(case.plain, [t.double() for t in tensors])
                results[f"{case} {shape} {dtype}"] = ([value, *grads], [truth, *want])
    return results


def assert_each_is_right(results, where):
    for key, (found, truth) in results.items():
        tolerance = 1e-11 if found[0].dtype == torch.float64 else 4e-6
        for got, want in zip(found, truth, strict=True):
            error, largest = (t.abs().max().item() for t in (got.double() - want, want))
            assert error <= tolerance * max(largest, 1.0), f"{where}, {key}: {error:.3g} of {largest:.3g}"

"""Where the fit of a mixture begins: k-means, k-means++, random points or random responsibilities, and what the caller gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as nnf

from vae_fast.models import _em
from vae_fast.models._em import Parameters

INIT_PARAMS = ("kmeans", "k-means++", "random", "random_from_data")
_AT_ONCE = 2**22  # elements of a block of distances or responsibilities: never N x K


@torch.no_grad()
def start(
    blocks: Callable[[], Iterable[Tensor]],
    sample: Tensor,
    n_components: int,
    covariance_type: str,
    init_params: str,
    reg_covar: float,
    generator: torch.Generator | None,
    given: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> Parameters:
    """Parameters to begin with.

    ``"kmeans"``, ``"k-means++"`` and ``"random_from_data"`` give centres, each sample is assigned to the nearest one and an M-step follows;
    ``"random"`` draws responsibilities.

    Args:
        blocks: all samples, in blocks.
        sample: samples to look for centres in, all or some.
        n_components, covariance_type, init_params, reg_covar: as in :class:`vae_fast.models.MixtureOfGaussians`.
        generator: of the CPU.
        given: weights, means and the ``scale`` of :func:`vae_fast.mixture_log_prob` set by the caller. Given means are the centres.
    """
    weights, means, scale = given
    pieces = (piece for x in blocks() for piece in x.split(_rows_of(n_components)))
    if weights is None or means is None or scale is None:
        if init_params == "random" and means is None:
            centres = sample.mean(0).expand(n_components, -1)
            pairs = _random_responsibilities(pieces, n_components, generator)
        else:
            centres = _centres(sample, n_components, init_params, generator) if means is None else means
            pairs = ((x, nnf.one_hot(nearest(x, centres)[0], n_components).to(x.dtype)) for x in pieces)
        around = Parameters(centres.new_zeros(n_components), centres, _spread(sample, n_components, covariance_type))
        sums = _em.assigned(pairs, around, covariance_type)
        found = _em.maximise(around, sums, reg_covar, covariance_type, f"start from init_params={init_params!r}")
        weights = found.weight_logits.softmax(0) if weights is None else weights
        means, scale = found.means if means is None else means, found.scale if scale is None else scale
    return Parameters(weights.log(), means, scale)


def _rows_of(k: int) -> int:
    """How many rows of K numbers are formed at once."""
    return max(1, _AT_ONCE // k)


def _random_responsibilities(blocks: Iterable[Tensor], k: int, generator: torch.Generator | None) -> Iterator[tuple[Tensor, Tensor]]:
    for x in blocks:
        drawn = torch.rand((len(x), k), generator=generator, dtype=torch.float64)
        yield x, (drawn / drawn.sum(1, keepdim=True)).to(x)


def _spread(sample: Tensor, k: int, covariance_type: str) -> Tensor:
    """The scale of a component that nothing is assigned to: that of all samples, per feature."""
    variances = sample.double().var(0, correction=0)
    variances = torch.where(variances > 0.0, variances, 1.0)
    if covariance_type == "spherical":
        return (0.5 * variances.mean().log()).expand(k).to(sample)
    if covariance_type == "diag":
        return (0.5 * variances.log()).expand(k, -1).to(sample)
    factor = torch.diag(variances.rsqrt()).to(sample)
    if covariance_type == "tied":
        return factor
    if covariance_type == "full":
        return factor.expand(k, -1, -1)
    raise ValueError(f"covariance_type={covariance_type!r}: expected one whose start is here")


def _centres(x: Tensor, k: int, init_params: str, generator: torch.Generator | None) -> Tensor:
    if init_params == "random_from_data":
        return x[torch.randperm(len(x), generator=generator)[:k].to(x.device)]
    offset = x.mean(0)
    x = x - offset  # the expanded distances below lose digits to a common offset
    centres = plus_plus(x, k, generator)
    return offset + (kmeans(x, centres) if init_params == "kmeans" else centres)


def nearest(x: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre of each row and the squared distance to it, in blocks: never N x K at once."""
    offset = centres.mean(0)
    centres = centres - offset
    size = centres.square().sum(1)
    labels, distances = [], []
    for block in x.split(_rows_of(len(centres))):
        shifted = block - offset
        least, label = torch.addmm(size, shifted, centres.T, alpha=-2.0).min(1)
        labels.append(label)
        distances.append((least + shifted.square().sum(1)).clamp(min=0.0))
    return torch.cat(labels), torch.cat(distances)


def plus_plus(x: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007, section 2.2): of ``2 + log k`` candidates drawn by distance, the best is kept."""
    trials = 2 + int(math.log(k))
    chosen = [int(torch.randint(len(x), (1,), generator=generator))]
    size = x.square().sum(1)

    def distances(rows: Tensor) -> Tensor:
        """Squared distances, (rows, N), by one product; exactly zero where they are nothing but rounding."""
        centres = x[rows]
        expanded = torch.addmm(size, centres, x.T, alpha=-2.0) + size[rows].unsqueeze(1)
        noise = 8.0 * torch.finfo(x.dtype).eps * (size + size[rows].unsqueeze(1))
        return expanded.masked_fill(expanded <= noise, 0.0)

    distance = distances(torch.tensor(chosen, device=x.device))[0]
    for _ in range(k - 1):
        mass = distance.double().cumsum(0)
        drawn = torch.rand(trials, generator=generator, dtype=torch.float64).to(x.device) * mass[-1]
        candidates = torch.searchsorted(mass, drawn, right=True).clamp(max=len(x) - 1)
        left = torch.minimum(distance, distances(candidates))
        best = left.double().sum(1).argmin()
        chosen.append(int(candidates[best]))
        distance = left[best]
    return x[chosen]


def kmeans(x: Tensor, centres: Tensor, max_iter: int = 300, tol: float = 1e-4) -> Tensor:
    """Lloyd's algorithm from ``centres``; an empty cluster takes the sample furthest from its own centre."""
    k = len(centres)
    enough = tol * x.double().var(0, correction=0).mean()
    labels = None
    for _ in range(max_iter):
        last = labels
        labels, distances = nearest(x, centres)
        if last is not None and torch.equal(labels, last):
            break
        counts = torch.bincount(labels, minlength=k)
        empty = (counts == 0).nonzero().flatten()
        if len(empty):
            furthest = distances.topk(len(empty)).indices
            labels[furthest] = empty
            counts = torch.bincount(labels, minlength=k)
        total = torch.zeros((k, x.shape[1]), dtype=torch.float64, device=x.device)
        for block, label in zip(x.split(_rows_of(k)), labels.split(_rows_of(k)), strict=True):
            total += nnf.one_hot(label, k).to(x.dtype).T @ block
        new = torch.where(counts.unsqueeze(1) > 0, (total / counts.unsqueeze(1).clamp(min=1)).to(x), centres)
        moved = (new - centres).double().square().sum()
        centres = new
        if moved <= enough:
            break
    return centres

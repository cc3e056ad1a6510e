"""Where the fit of a mixture begins: k-means, k-means++, random points or random responsibilities, and what the caller gives.

What a start costs is bounded by what a few iterations of the fit cost, unless both are small (a million samples x components). Centres
are looked for in all samples if there are 50,000 at most (32 for each component, if that is more), else in that many, or, by k-means||,
in a few passes over a file; and Lloyd's algorithm goes over no more samples in all than there are, or twice over those. Nearest centres
come from the kernels of the mixture: components so narrow that each sample belongs to one of them alone. Nothing of size N x K is formed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vae_fast import functional as F
from vae_fast._world import World
from vae_fast.functional import _arguments as check
from vae_fast.functional.mixture import has_factors
from vae_fast.models import _em
from vae_fast.models._em import Parameters
from vae_fast.models._mixture_data import Rows, block_rows

INIT_PARAMS = ("kmeans", "k-means++", "random", "random_from_data")
_AT_ONCE = 2**22  # elements of a block of distances or responsibilities: never N x K
_GREEDY = 2**20  # samples x centres up to which k-means++ draws one centre after the other, and k-means goes on until it has converged
_WEIGHED = (8192, 16)  # samples, and at least so many for each candidate, that candidates are weighed by
_ROUNDS = 5  # of k-means||; Bahmani et al. 2012, section 5.3: "as few as five"
_LLOYD = 300  # iterations of k-means at most


@torch.no_grad()
def start(
    rows: Rows,
    sample: Tensor,
    samples: int,
    n_components: int,
    covariance_type: str,
    init_params: str,
    reg_covar: float,
    generator: torch.Generator,
    explicit: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> Parameters:
    """Parameters to begin with.

    ``"kmeans"``, ``"k-means++"`` and ``"random_from_data"`` give centres, each sample is assigned to the nearest one and an M-step follows;
    ``"random"`` draws responsibilities.

    Args:
        rows: all samples.
        sample: samples to look for centres in, all or some.
        samples: how many there are.
        n_components, covariance_type, init_params, reg_covar: as in :class:`vae_fast.models.MixtureOfGaussians`.
        generator: of the CPU, in the same state in every process.
        explicit: weights, means and the ``scale`` of :func:`vae_fast.mixture_log_prob` set by the caller. Given means are the centres.
    """
    weights, means, scale = explicit
    if weights is None or means is None or scale is None:
        around, sums = first_sums(rows, sample, samples, n_components, covariance_type, init_params, generator, means)
        found = _em.maximise(around, sums, reg_covar, covariance_type, f"start from init_params={init_params!r}")
        weights = found.weight_logits.softmax(0) if weights is None else weights
        means, scale = found.means if means is None else means, found.scale if scale is None else scale
    return Parameters(weights.log(), means, scale)


def first_sums(
    rows: Rows,
    sample: Tensor,
    samples: int,
    n_components: int,
    covariance_type: str,
    init_params: str,
    generator: torch.Generator,
    means: Tensor | None,
) -> tuple[Parameters, _em.Sums]:
    """The sums that the first M-step is made of, and the parameters they are about; arguments as in :func:`start`, ``means`` as given."""
    spread = _spread(sample, n_components, covariance_type)
    if init_params == "random" and means is None:
        centres = sample.mean(0).expand(n_components, -1)
        seed = _drawn(generator)
        around = Parameters(centres.new_zeros(n_components), centres, spread)
        return around, _em.assigned(
            lambda: _random_responsibilities(rows.numbered(), n_components, seed), around, covariance_type, rows.world
        )
    centres = _centres(rows, sample, samples, n_components, init_params, generator) if means is None else means
    at_most = block_rows(n_components, rows.n_features)
    narrow = _narrow(centres, unit_of(sample), covariance_type)
    sums = _em.expectation(lambda: rows.blocks(at_most), narrow, covariance_type, world=rows.world)
    return Parameters(centres.new_zeros(n_components), centres, spread), sums


def numbers(name: str, value: Any) -> Tensor:
    """What was given for a start, as a tensor."""
    if isinstance(value, Tensor):
        return check.tensor(name, value).detach()
    try:
        return torch.as_tensor(np.array(value, dtype=np.float64))
    except (TypeError, ValueError):
        raise TypeError(f"{name}={check.shown(value)}: expected an array or a tensor of numbers") from None


def given(name: str, value: Any, shape: tuple[int, ...], rows: Rows, dtype: torch.dtype | None = None) -> Tensor | None:
    """An explicit start as a tensor like the samples, or of another dtype."""
    if value is None:
        return None
    t = numbers(name, value).to(device=rows.device, dtype=dtype or rows.dtype)
    if t.shape != shape:
        raise ValueError(f"{name} has shape {tuple(t.shape)}: expected {shape}")
    if not bool(t.isfinite().all()):
        raise ValueError(f"{name}: expected finite numbers")
    return t


def unit_of(sample: Tensor) -> float:
    """The root of the mean squared distance from the mean; 1 if all samples are the same."""
    return math.sqrt(sample.double().var(0, correction=0).sum().item()) or 1.0


def _narrow(centres: Tensor, unit: float, covariance_type: str) -> Parameters:
    """Components of equal weight around ``centres`` whose responsibilities are 1 for the nearest centre and 0 for the others.

    Their standard deviation is the rounding error of ``unit``. A sample as near to two centres as its dtype can tell is shared.
    """
    (k, d), sigma = centres.shape, unit * torch.finfo(centres.dtype).eps
    if has_factors(covariance_type):
        factor = torch.eye(d, dtype=centres.dtype, device=centres.device) / sigma
        scale = factor if covariance_type == "tied" else factor.expand(k, d, d)
    else:
        scale = centres.new_full((k, d) if covariance_type == "diag" else (k,), math.log(sigma))
    return Parameters(centres.new_zeros(k), centres, scale)


def _rows_of(k: int) -> int:
    """How many rows of K numbers are formed at once."""
    return max(1, _AT_ONCE // k)


def _random_responsibilities(blocks: Iterable[tuple[int, Tensor]], k: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Each block's are drawn by a generator of its own: they are the same for any number of processes."""
    for number, block in blocks:
        generator = _generator(seed, 0, number)
        for x in block.split(_rows_of(k)):
            drawn = torch.rand((len(x), k), generator=generator, dtype=torch.float64)
            yield x, (drawn / drawn.sum(1, keepdim=True)).to(x)


def _drawn(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))


def _generator(seed: int, turn: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed + 0x9E3779B97F4A7C15 * (turn + 1) + 0xBF58476D1CE4E5B9 * (number + 1)) % 2**63)


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


def _centres(rows: Rows, sample: Tensor, samples: int, k: int, init_params: str, generator: torch.Generator) -> Tensor:
    if init_params == "random_from_data":
        return sample[torch.randperm(len(sample), generator=generator)[:k].to(sample.device)]
    offset = sample.mean(0)
    shifted = sample - offset  # the expanded distances of k-means++ lose digits to a common offset
    if init_params == "k-means++" and rows.has_places() and len(sample) < samples:
        whole = Source(rows.numbered, rows.at, rows.world)
        return offset + _reduced(parallel(whole, sample, k, generator) - offset, shifted, samples, k, generator)
    if len(sample) * k > _GREEDY:
        one = Source(lambda: [(0, shifted)], lambda _, places: shifted[places.to(shifted.device)], World())
        centres = _reduced(parallel(one, shifted, k, generator), shifted, samples, k, generator)
    else:
        centres = plus_plus(shifted, k, generator)
    if init_params == "kmeans":
        few = len(sample) == samples and samples * k <= _GREEDY
        centres = kmeans(shifted, centres, _LLOYD if few else min(_LLOYD, max(2, samples // len(sample))))
    return offset + centres


class Source(NamedTuple):
    """Samples in numbered blocks, rows of a block by their places in it, and the processes that share the blocks."""

    blocks: Callable[[], Iterable[tuple[int, Tensor]]]
    at: Callable[[int, Tensor], Tensor]
    world: World


def parallel(source: Source, sample: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """The candidates of k-means|| (Bahmani, Moseley, Vattani, Kumar and Vassilvitskii 2012, algorithm 2): some 2.5 K rows.

    In each of five rounds a sample becomes a candidate with probability ``l d^2 / sum d^2``, ``l = K / 2`` (8 at least), ``d`` its distance
    from the candidates so far. A round reads the samples once, for their distances from the candidates of the round before, and keeps a
    number for each. What is drawn for a sample is decided by the seed, the round and its place: not by the number of processes.
    """
    seed, unit, many = _drawn(generator), unit_of(sample), max(8, k // 2)
    newest = sample[torch.randint(len(sample), (1,), generator=generator).to(sample.device)]
    candidates, distances = [newest], dict[int, Tensor]()
    for turn in range(_ROUNDS):

        def measure(newest: Tensor = newest) -> Tensor:
            for number, x in source.blocks():
                found = _squared(x, newest, unit)
                distances[number] = torch.minimum(distances[number], found) if number in distances else found
            return torch.stack([d.double().sum() for d in distances.values()]).sum()

        total = source.world.add_up([source.world.together(measure)])[0].item()
        if total == 0.0:
            break

        def draw(turn: int = turn, total: float = total) -> Tensor:
            picked = [sample[:0]]
            for number, d in distances.items():
                drawn = torch.rand(len(d), generator=_generator(seed, turn, number), dtype=torch.float64).to(d.device)
                places = (drawn * total < many * d.double()).nonzero().flatten()
                picked += [source.at(number, places.cpu())] if len(places) else []
            return torch.cat(picked)

        newest = torch.cat([part.to(sample) for part in source.world.gather(source.world.together(draw).cpu())])
        if len(newest):
            candidates.append(newest)
    return torch.cat(candidates)


def _squared(x: Tensor, centres: Tensor, unit: float) -> Tensor:
    """The squared distance of each row from the nearest centre, from the log-density of :func:`_narrow` components."""
    narrow = _narrow(centres, unit, "spherical")
    k, d = centres.shape
    log_sigma = narrow.scale[0].double().item()
    at_centre = -math.log(k) - d * (log_sigma + 0.5 * math.log(2.0 * math.pi))
    at_most = block_rows(k, d)
    pieces = x.split(at_most) if at_most is not None else (x,)
    log_prob = torch.cat([F.mixture_log_prob(piece, *narrow, covariance_type="spherical") for piece in pieces])
    return ((at_centre - log_prob).clamp_(min=0.0) * 2.0).mul_(math.exp(2.0 * log_sigma))


def _reduced(candidates: Tensor, sample: Tensor, samples: int, k: int, generator: torch.Generator) -> Tensor:
    """K of the candidates, by k-means++ with each as heavy as the samples that are nearest to it.

    Those are counted in a sample, in which a few that lie far out are missing: a candidate stands for itself at least.
    """
    if len(candidates) < k:
        more = sample[torch.randperm(len(sample), generator=generator)[: k - len(candidates)].to(sample.device)]
        return torch.cat([candidates, more])
    part = sample[:: max(1, len(sample) // max(_WEIGHED[0], _WEIGHED[1] * len(candidates)))]
    at_most = block_rows(len(candidates), sample.shape[1])
    narrow = _narrow(candidates, unit_of(sample), "spherical")
    counts = _em.expectation(lambda: part.split(at_most or len(part)), narrow, "spherical").counts
    return plus_plus(candidates, k, generator, 1.0 + counts * (samples / len(part)))


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


def plus_plus(x: Tensor, k: int, generator: torch.Generator | None, weights: Tensor | None = None) -> Tensor:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007, section 2.2): of ``2 + log k`` candidates drawn by distance, the best is kept.

    ``weights`` are how many samples each row stands for; None is one.
    """
    trials = 2 + int(math.log(k))
    mass = torch.ones(len(x), dtype=torch.float64, device=x.device) if weights is None else weights.double()
    chosen = [int(torch.randint(len(x), (1,), generator=generator)) if weights is None else int(mass.argmax())]
    size = x.square().sum(1)

    def distances(rows: Tensor) -> Tensor:
        """Squared distances, (rows, N), by one product; exactly zero where they are nothing but rounding."""
        centres = x[rows]
        expanded = torch.addmm(size, centres, x.T, alpha=-2.0) + size[rows].unsqueeze(1)
        noise = 8.0 * torch.finfo(x.dtype).eps * (size + size[rows].unsqueeze(1))
        return expanded.masked_fill(expanded <= noise, 0.0)

    distance = distances(torch.tensor(chosen, device=x.device))[0]
    for _ in range(k - 1):
        below = (mass * distance).cumsum(0)
        drawn = torch.rand(trials, generator=generator, dtype=torch.float64).to(x.device) * below[-1]
        candidates = torch.searchsorted(below, drawn, right=True).clamp(max=len(x) - 1)
        left = torch.minimum(distance, distances(candidates))
        best = (left.double() @ mass).argmin()
        chosen.append(int(candidates[best]))
        distance = left[best]
    return x[chosen]


def kmeans(x: Tensor, centres: Tensor, max_iter: int = _LLOYD, tol: float = 1e-4) -> Tensor:
    """Lloyd's algorithm from ``centres``; an empty cluster takes the sample furthest from its own centre."""
    k, d = centres.shape
    enough = tol * x.double().var(0, correction=0).mean()
    unit, at_most = unit_of(x), block_rows(k, d) or len(x)
    for _ in range(max_iter):
        sums = _em.expectation(lambda: x.split(at_most), _narrow(centres, unit, "spherical"), "spherical")
        empty = sums.counts == 0.0
        mean = centres.double() + sums.first / sums.counts.masked_fill(empty, 1.0).unsqueeze(1)
        new = mean.to(x)
        if bool(empty.any()):
            new[empty] = x[nearest(x, centres)[1].topk(int(empty.sum())).indices]
        moved = (new - centres).double().square().sum()
        centres = new
        if moved <= enough:
            break
    return centres

"""Aggregate posteriors: mixtures whose components are the batch itself, and the parts of a total correlation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

import vae_fast
from vae_fast.bench.case import Case, Inputs, compiled, leaf, plain

DATASET_SIZE = 60_000


def _log_density(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * (math.log(2 * math.pi) + logvar + (z - mu).square() * (-logvar).exp())


def formula(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """The three parts of beta-TC-VAE by minibatch weighted sampling, added up, as it is written everywhere: on B x B x L arrays."""
    pairs = _log_density(z.unsqueeze(1), mu.unsqueeze(0), logvar.unsqueeze(0))
    size = math.log(len(z) * DATASET_SIZE)
    joint, product = torch.logsumexp(pairs.sum(2), 1) - size, (torch.logsumexp(pairs, 1) - size).sum(1)
    prior = -0.5 * (math.log(2 * math.pi) + z.square()).sum(1)
    posterior = _log_density(z, mu, logvar).sum(1)
    return torch.stack([posterior - joint, joint - product, product - prior]).mean(1).sum()


def aggregate(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """``log q(z)`` under the mean of the batch's posteriors, its mean."""
    pairs = _log_density(z.unsqueeze(1), mu.unsqueeze(0), logvar.unsqueeze(0)).sum(2)
    return (torch.logsumexp(pairs, 1) - math.log(len(mu))).mean()


def _ours(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    parts = vae_fast.total_correlation(z, mu, logvar, DATASET_SIZE)
    return parts[0] + parts[1] + parts[2]


def _our_aggregate(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    return vae_fast.aggregate_log_prob(z, mu, logvar).mean()


def _inputs(batch: int, latent: int) -> Callable[[str, torch.Generator], Inputs]:
    def make(device: str, g: torch.Generator) -> Inputs:
        mu, spread, noise = (torch.randn(batch, latent, device=device, generator=g) for _ in range(3))
        logvar = 0.3 * spread - 1.0
        return leaf(mu + (0.5 * logvar).exp() * noise), leaf(mu), leaf(logvar)

    return make


def _case(name: str, batch: int, latent: int, pairs: tuple[int, int]) -> Case:
    """``pairs``: operations for each pair of samples in each dimension, forward and backward."""
    written, ours = (formula, _ours) if name == "total_correlation" else (aggregate, _our_aggregate)
    size, array = 4 * batch * latent, 4 * batch * batch * latent
    forward, backward = (n * batch * batch * latent for n in pairs)
    return Case(
        name,
        {"B": batch, "L": latent},
        _inputs(batch, latent),
        {"ours": plain(ours), "eager": plain(written), "compile": compiled(written, None)},
        {"forward": 3 * size, "backward": 6 * size, "both": 9 * size},
        {"forward": forward, "backward": backward, "both": forward + backward},
        needs={"eager": 6 * array, "compile": 2 * array},
        memory_target=64 << 20,
    )


def aggregates(quick: bool) -> list[Case]:
    """The rows of the mixtures' suite.

    Operations of a total correlation, for a pair of samples in a dimension: x - mu, over sigma, its square into the joint density and from
    the constant, a power, its sum (8); all but the sum again, the weight, the sum of both weights, two moments, the count and the gradient
    (17).

    Example:
        >>> [case.label for case in aggregates(True)]
        ['total_correlation, B=256 L=10', 'aggregate_log_prob, B=256 L=10']
    """
    sizes = (256,) if quick else (2048, 8192)
    rows = [_case("total_correlation", b, 10, (8, 17)) for b in sizes]
    return [*rows, _case("aggregate_log_prob", sizes[0], 10, (4, 10))]

"""The KL divergences of our kernels, registered for ``torch.distributions.kl_divergence``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, distributions
from torch.distributions.kl import kl_divergence, register_kl

from vae_fast import functional as F
from vae_fast.distributions._combined import Independent
from vae_fast.distributions._elementwise import Normal
from vae_fast.distributions._rows import number, sum_last

_NORMALS = (Normal, distributions.Normal)


def _normals(p: distributions.Normal, q: distributions.Normal, n: int) -> Tensor:
    return F.gaussian_kl(number(p.loc), number(p.scale), number(q.loc), number(q.scale), scale="std", event_dim=n)


def kl_normal_normal(p: distributions.Normal, q: distributions.Normal) -> Tensor:
    """KL(p || q) of each element; q may be a scalar prior."""
    return _normals(p, q, 0)


def kl_independent_independent(p: distributions.Independent[Any], q: distributions.Independent[Any]) -> Tensor:
    """KL(p || q) of each event: one pass for normal distributions, otherwise the summed KL of the base distributions."""
    n = p.reinterpreted_batch_ndims
    if n != q.reinterpreted_batch_ndims:
        raise NotImplementedError
    of_normals = type(p.base_dist) in _NORMALS and type(q.base_dist) in _NORMALS
    return _normals(p.base_dist, q.base_dist, n) if of_normals else sum_last(kl_divergence(p.base_dist, q.base_dist), n)


for ours, torchs, function in (
    (Normal, distributions.Normal, kl_normal_normal),
    (Independent, distributions.Independent, kl_independent_independent),
):
    for pair in ((ours, ours), (ours, torchs), (torchs, ours)):
        register_kl(*pair)(function)

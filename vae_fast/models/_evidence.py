"""The importance-weighted estimate of a model's log p(x)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vae_fast import functional as F
from vae_fast.functional import _arguments as check
from vae_fast.models._decoded import decode_samples

if TYPE_CHECKING:
    from vae_fast.models.vae import VAE


def log_evidence(model: VAE, x: Tensor, num_samples: int, max_rows: int, generator: torch.Generator | None) -> Tensor:
    """:meth:`vae_fast.models.VAE.log_prob`, in blocks of rows and samples."""
    check.positive_int("num_samples", num_samples)
    check.positive_int("max_rows", max_rows)
    check.event_dims("event_dim", model.event_dim, "x", x.shape)
    x = x.to_dense() if x.layout == torch.sparse_csr else x  # it is broadcast against the samples
    batch, event = x.shape[: x.ndim - model.event_dim], x.shape[x.ndim - model.event_dim :]
    rows = x.reshape(batch.numel(), *event)
    step = max(1, min(max_rows, rows.shape[0]))
    bounds = [F.iwae_bound(_log_weights(model, block, num_samples, max(1, max_rows // step), generator)) for block in rows.split(step)]
    return torch.cat(bounds).reshape(batch)


def _log_weights(model: VAE, x: Tensor, num_samples: int, at_once: int, generator: torch.Generator | None) -> Tensor:
    """``log p(x, z_k) - log q(z_k|x)``, shape (num_samples, batch)."""
    mu, logvar = model.encode(x)
    weights = []
    for start in range(0, num_samples, at_once):
        count = min(at_once, num_samples - start)
        z = F.reparameterize(mu, logvar, scale_bounds=model.scale_bounds, num_samples=count, generator=generator)
        log_p = model.log_likelihood(x, decode_samples(model, z)) + model.log_prior(z)
        weights.append(log_p - model.log_posterior(z, mu, logvar))
    return torch.cat(weights)

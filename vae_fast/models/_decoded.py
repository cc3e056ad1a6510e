"""What a VAE's decoder gives, and the model's own scale beside it: the parameters of p(x|z)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from vae_fast._scales import bounded
from vae_fast.functional._own_likelihood import parameters_of

if TYPE_CHECKING:
    from vae_fast.models.vae import VAE

Recon = Tensor | tuple[Tensor, ...]


def with_scale(model: VAE, recon: Recon) -> Recon:
    """The decoder's output with the model's own scale, if it has one."""
    if model.scale is None:
        return recon
    given, names = parameters_of(recon), model._entry().parameters
    if len(given) != len(names) - 1:
        raise ValueError(f"the decoder gives {len(given)} of {', '.join(names)}: expected {len(names) - 1}, as the model has a scale")
    return (*given, model.scale)


def parameters_of_x(model: VAE, recon: Recon) -> Sequence[Tensor]:
    """The parameters of p(x|z) with the scale within its bounds, as the likelihood has it."""
    parameters = parameters_of(with_scale(model, recon))
    if model.recon_scale_bounds is None or len(parameters) < len(model._entry().parameters):
        return parameters
    *others, scale = parameters
    return [*others, bounded(scale, model.recon_scale_bounds).to(scale.dtype)]

"""The Laplace log-density."""

from __future__ import annotations

from torch import Tensor

from vae_fast.functional import _bounds as bounds
from vae_fast.functional._dispatch import overridable
from vae_fast.functional._location_scale import location_scale_log_prob


@overridable
def laplace_log_prob(
    x: Tensor,
    loc: Tensor,
    log_scale: Tensor,
    *,
    scale: str = "log_std",
    scale_bounds: bounds.ScaleBounds | None = None,
    event_dim: int = 1,
    check_data: bool = False,
) -> Tensor:
    r"""Log-density of independent Laplace distributions, in nats.

    .. math:: \log \mathrm{Laplace}(x; m, b) = -\sum_j \log 2 b_j + \frac{|x_j - m_j|}{b_j}

    Args:
        x: observations, any floating dtype, bool or uint8 (read as ``x / 255``), shape ``(*batch, *event)``.
        loc: m; same event shape, batch dimensions broadcast. Its derivative is 0 where ``x == loc``.
        log_scale: b, in the form that ``scale`` says, broadcast against ``loc``.
        scale: the form, as of a standard deviation in :func:`gaussian_log_prob`: ``"log_std"`` is log b, ``"std"`` b itself, ``"var"``
            b squared and ``"logvar"`` its logarithm, ``"softplus"`` b = softplus(t).
        scale_bounds: ``(low, high, mode)``: ``log_scale`` is held between two bounds as it is given, in the units that ``scale`` says, see
            :func:`gaussian_kl`; None leaves it as it is.
        event_dim: number of trailing dimensions that are summed.
        check_data: True: look at the values of the arguments first, see :class:`checks`.

    Returns:
        float32 (float64 for float64 inputs), one value per sample, not reduced over the batch. Differentiable in every tensor.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> vae_fast.laplace_log_prob(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(2))
        tensor([-1.3863])
    """
    parameters = {"loc": loc, "log_scale": log_scale}
    return location_scale_log_prob("laplace", x, parameters, scale, scale_bounds, event_dim, check_data)

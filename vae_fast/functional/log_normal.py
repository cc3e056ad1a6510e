"""The log-normal log-density."""

from __future__ import annotations

from torch import Tensor

from vae_fast.functional import _bounds as bounds
from vae_fast.functional._dispatch import overridable
from vae_fast.functional._location_scale import location_scale_log_prob


@overridable
def log_normal_log_prob(
    x: Tensor,
    loc: Tensor,
    log_scale: Tensor,
    *,
    scale: str = "log_std",
    scale_bounds: bounds.ScaleBounds | None = None,
    event_dim: int = 1,
    check_data: bool = False,
) -> Tensor:
    r"""Log-density of independent log-normal distributions, in nats: log x is Gaussian.

    .. math:: \log \mathrm{LogNormal}(x; m, s^2) = -\sum_j \log x_j + \log s_j + \tfrac12 \log 2\pi + \frac{(\log x_j - m_j)^2}{2 s_j^2}

    There is no density at ``x <= 0``: the result is -inf there, its gradients 0. (``torch.distributions.LogNormal`` raises, and without
    ``validate_args`` gives NaN; :class:`checks` and ``check_data=True`` refuse such an x here.)

    Args:
        x: positive observations, any floating dtype, bool or uint8 (read as ``x / 255``), shape ``(*batch, *event)``.
        loc: m, the mean of log x; same event shape, batch dimensions broadcast. The mean of x is ``exp(m + s^2 / 2)``.
        log_scale: s, the standard deviation of log x, in the form that ``scale`` says, broadcast against ``loc``.
        scale: the form, as in :func:`gaussian_log_prob`: ``"log_std"``, ``"logvar"``, ``"std"``, ``"var"`` or ``"softplus"``.
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
        >>> vae_fast.log_normal_log_prob(torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(2))
        tensor([-1.8379])
    """
    parameters = {"loc": loc, "log_scale": log_scale}
    return location_scale_log_prob("log_normal", x, parameters, scale, scale_bounds, event_dim, check_data)

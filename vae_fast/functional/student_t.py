"""The Student-t log-density."""

from __future__ import annotations

from torch import Tensor

from vae_fast.functional import _bounds as bounds
from vae_fast.functional._dispatch import overridable
from vae_fast.functional._location_scale import location_scale_log_prob


@overridable
def student_t_log_prob(
    x: Tensor,
    df: Tensor,
    loc: Tensor,
    log_scale: Tensor,
    *,
    scale: str = "log_std",
    scale_bounds: bounds.ScaleBounds | None = None,
    event_dim: int = 1,
    check_data: bool = False,
) -> Tensor:
    r"""Log-density of independent Student-t distributions, in nats.

    .. math:: \log t_n(x; m, s) = \sum_j \log \Gamma\tfrac{n_j + 1}2 - \log \Gamma\tfrac{n_j}2 - \tfrac12 \log \pi n_j - \log s_j
        - \tfrac{n_j + 1}2 \log\Bigl(1 + \tfrac{(x_j - m_j)^2}{n_j s_j^2}\Bigr)

    The difference of the log-gammas is Stirling's series of the difference (DLMF 5.11.8), so that nothing cancels: value and gradients are
    as precise for ``df = 1e8``, where this is a Gaussian, as for ``df = 0.01``.

    Args:
        x: observations, any floating dtype, bool or uint8 (read as ``x / 255``), shape ``(*batch, *event)``.
        df: n > 0, the degrees of freedom, broadcast against ``loc``: of any shape, one number for all included.
        loc: m; same event shape as ``x``, batch dimensions broadcast.
        log_scale: s, in the form that ``scale`` says, broadcast against ``loc``. It is not the standard deviation, which is
            ``s (n / (n - 2))^(1/2)`` where n > 2.
        scale: the form, as of a standard deviation in :func:`gaussian_log_prob`: ``"log_std"`` is log s, ``"std"`` s itself, ``"var"``
            s squared and ``"logvar"`` its logarithm, ``"softplus"`` s = softplus(t).
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
        >>> vae_fast.student_t_log_prob(torch.zeros(1, 2), torch.tensor(1.0), torch.zeros(1, 2), torch.zeros(2))
        tensor([-2.2895])
    """
    parameters = {"df": df, "loc": loc, "log_scale": log_scale}
    return location_scale_log_prob("student_t", x, parameters, scale, scale_bounds, event_dim, check_data)

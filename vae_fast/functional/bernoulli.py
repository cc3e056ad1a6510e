"""The Bernoulli log-likelihood, in logit space or over probabilities, with four ways to clip."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from vae_fast.functional import _arguments as check
from vae_fast.functional import _values as values
from vae_fast.functional._dispatch import overridable, row_sum
from vae_fast.likelihoods import term_params


@overridable
def bernoulli_log_prob(
    x: Tensor,
    logits: Tensor | None = None,
    *,
    probs: Tensor | None = None,
    clip: str | None = None,
    eps: float = 1e-9,
    event_dim: int = 1,
    check_data: bool = False,
) -> Tensor:
    r"""Bernoulli log-likelihood, in nats; targets may be grey values in [0, 1].

    .. math:: \log p(x) = \sum_i x_i \log p_i + (1 - x_i) \log(1 - p_i), \qquad p = \sigma(\text{logits})

    The exact form in logit space is ``x a - softplus(a)``, with derivative ``x - sigmoid(a)``. Clip modes:

    - ``None``: exact; a pixel with ``x = 0, p = 0`` counts 0, and ``-inf`` comes only where the true value is ``-inf``.
    - ``"clamp"``: ``p`` clipped to ``[eps, 1 - eps]`` with zero gradient where it clips (TensorFlow's ``clip_by_value``). In float32
      ``1 - 1e-9`` is 1 and the textbook code gives ``log(0)``; here the logs are clipped (or the logit), so it is exact for any eps.
    - ``"add"``: ``log(p + eps)`` and ``log(1 - p + eps)``.
    - ``"bce"``: the value of ``F.binary_cross_entropy`` (logs floored at -100) and its gradient ``(x - p) / max(p (1 - p), 1e-12)``.

    ``F.binary_cross_entropy`` reads all targets and probabilities and raises where one is outside [0, 1]. Here, as in
    ``F.binary_cross_entropy_with_logits``, they are not looked at unless ``check_data=True`` or :class:`checks` asks for it: targets of
    0..255 give a number that is no likelihood.

    Args:
        x: targets in [0, 1], any floating dtype, bool, or uint8 (read as ``x / 255`` inside the kernel), shape ``(*batch, *event)``.
        logits: any floating dtype; same event shape, batch dimensions broadcast. Give this or ``probs``.
        probs: probabilities in [0, 1]; outside, the result is NaN (``"clamp"`` clips them).
        clip: None, ``"clamp"``, ``"add"`` or ``"bce"``.
        eps: the constant of ``"clamp"`` and ``"add"``, in (0, 0.5).
        event_dim: number of trailing dimensions that are summed (3 for images).
        check_data: True: look at the values of the arguments first, see :class:`checks`.

    Returns:
        float32 (float64 for float64 inputs), one value per sample, not reduced over the batch. Differentiable in ``x``, ``logits``
        and ``probs``.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> vae_fast.bernoulli_log_prob(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, -100.0]]))
        tensor([-0.6931])
    """
    if (logits is None) == (probs is None):
        came = "neither" if logits is None else "both"
        raise ValueError(f"logits, probs: expected exactly one of them, got {came}")
    name, recon = ("logits", logits) if logits is not None else ("probs", cast(Tensor, probs))
    check.clip(clip, eps)
    check.observed(x, event_dim, **{name: recon})
    term, inputs = f"bernoulli_{name}.{clip or 'none'}", [x, recon]
    if values.wanted(check_data):
        values.require(*values.term(term, inputs, ("x", name)))
    return row_sum(term, inputs, [*term_params(clip, eps)], event_dim)

"""The log-density of the continuous Bernoulli distribution."""

from __future__ import annotations

from torch import Tensor

from vae_fast.functional import _arguments as check
from vae_fast.functional import _values as values
from vae_fast.functional._dispatch import overridable, row_sum


@overridable
def continuous_bernoulli_log_prob(x: Tensor, logits: Tensor, *, event_dim: int = 1, check_data: bool = False) -> Tensor:
    r"""Log-density of independent continuous Bernoulli distributions, in nats: grey values in [0, 1] with a density that integrates to 1.

    .. math:: \log p(x) = \sum_i x_i a_i - \log \frac{e^{a_i} - 1}{a_i}

    (Loaiza-Ganem and Cunningham 2019: "The continuous Bernoulli: fixing a pervasive error in variational autoencoders".) It is
    :func:`bernoulli_log_prob` plus the log of the normaliser that grey values need. Around ``a = 0``, where the normaliser and its
    derivative cancel, they are a series: value and gradient keep their precision for every ``a``.

    Args:
        x: grey values in [0, 1], any floating dtype, bool or uint8 (read as ``x / 255``), shape ``(*batch, *event)``; they are not looked
            at unless it is asked for.
        logits: a, any floating dtype; same event shape, batch dimensions broadcast. ``sigmoid(a)`` is the parameter that the paper calls
            lambda, which is not the mean: that is ``1 / (1 - e^-a) - 1 / a``.
        event_dim: number of trailing dimensions that are summed (3 for images).
        check_data: True: look at the values of the arguments first, see :class:`checks`.

    Returns:
        float32 (float64 for float64 inputs), one value per sample, not reduced over the batch. Differentiable in ``x`` and ``logits``.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> vae_fast.continuous_bernoulli_log_prob(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 10.0]]))
        tensor([2.3026])
    """
    check.observed(x, event_dim, logits=logits)
    name, inputs = "continuous_bernoulli", [x, logits]
    if values.wanted(check_data):
        values.require(*values.term(name, inputs, ("x", "logits")))
    return row_sum(name, inputs, [], event_dim)

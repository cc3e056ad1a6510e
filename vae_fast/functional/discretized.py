"""Likelihoods of images whose values are levels: the discretised logistic, and a mixture of them per pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_fast import reference
from vae_fast.functional import _arguments as check
from vae_fast.functional import _bounds as bounds
from vae_fast.functional import _values as values
from vae_fast.functional._dispatch import kernels, overridable, row_sum

#: Where the dimension of the parameters lies among those of an image.
LAYOUTS = {"nhwc": -1, "nchw": -3}
#: Where the first bin ends and the last begins, in units of [-1, 1]; None: where they do.
CONVENTIONS: dict[str, tuple[float, float] | None] = {"exact": None, "vdvae": (-0.999, 0.999), "nvae": (-0.999, 0.99)}
LEAST_LOG_SCALE = -7.0


@overridable
def discretized_logistic_log_prob(
    x: Tensor,
    loc: Tensor,
    log_scale: Tensor,
    *,
    bits: int = 8,
    scale_bounds: bounds.ScaleBounds | None = None,
    event_dim: int = 1,
    check_data: bool = False,
) -> Tensor:
    r"""Log-probability of levels under independent logistic distributions, each cut into ``2 ** bits`` bins, in nats.

    With :math:`y = 2 x - 1` on [-1, 1], h half the width of a bin and :math:`a, b = (y \pm h - m) / s` its ends,

    .. math:: \log p(x) = \sum_j \log(\sigma(a_j) - \sigma(b_j))
        = \sum_j -\mathrm{softplus}(-a_j) - \mathrm{softplus}(b_j) + \log(1 - e^{b_j - a_j})

    in the right-hand form, in which nothing cancels and nothing is floored. The first bin reaches to minus infinity, the last to infinity:
    the probabilities of all levels sum to 1 (Kingma et al. 2016, "Improved variational inference with inverse autoregressive flow").

    Args:
        x: levels ``k / (2 ** bits - 1)`` in [0, 1] in any floating dtype or bool, or the levels k themselves as uint8 (for 8 bits
            that is ``x / 255`` as everywhere in this package), shape ``(*batch, *event)``. A value between two levels is the middle of
            a bin of its own.
        loc: m, in units of [-1, 1]; same event shape, batch dimensions broadcast.
        log_scale: log s, in the same units, broadcast against ``loc``.
        bits: 1 to 8.
        scale_bounds: ``(low, high, mode)``: ``log_scale`` is held between two bounds, see :func:`gaussian_kl`; None leaves it as it is.
        event_dim: number of trailing dimensions that are summed (3 for images).
        check_data: True: look at the values of the arguments first, see :class:`checks`.

    Returns:
        float32 (float64 for float64 inputs), one value per sample, not reduced over the batch. Differentiable in every tensor (in ``x``
        as long as it stays in the first bin, in the last, or between them).

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> import torch, vae_fast
        >>> x = torch.tensor([[0, 128, 255]], dtype=torch.uint8)
        >>> vae_fast.discretized_logistic_log_prob(x, torch.zeros(1, 3), torch.zeros(3))
        tensor([-8.8552])
    """
    levels = _levels(bits)
    check.observed(x, event_dim, loc=loc, log_scale=log_scale)
    name, inputs = bounds.held("discretized_logistic", [x, loc, log_scale], bounds.checked(scale_bounds, "log_std"))
    if values.wanted(check_data):
        values.require(*values.term(name, inputs, ("x", "loc", "log_scale")))
        _look_at_levels(x, levels)
    return row_sum(name, inputs, [levels, stretch(x, levels)], event_dim)


@overridable
def discretized_logistic_mixture_log_prob(
    x: Tensor,
    params: Tensor,
    *,
    bits: int = 8,
    layout: str = "nhwc",
    convention: str = "exact",
    check_data: bool = False,
) -> Tensor:
    r"""Log-likelihood of images under a mixture of discretised logistics at every pixel, in nats (Salimans et al. 2017, "PixelCNN++").

    .. math:: \log p(x) = \sum_{ij} \log \sum_k w_{ijk} \prod_c p(x_{ijc}; m_{ijkc}, s_{ijkc}), \qquad w = \mathrm{softmax}

    with the factors of :func:`discretized_logistic_log_prob`. Of three colours the locations of the second and the third are moved by
    those before them: with y the pixel's true values on [-1, 1], :math:`m_2 + \tanh(c_0)\, y_1` and
    :math:`m_3 + \tanh(c_1)\, y_1 + \tanh(c_2)\, y_2`. Log scales are floored at -7; at the floor and below they get no gradient.

    One pass over the parameters. Where a gradient is wanted it writes that too, and the backward pass multiplies each image's by what
    comes; nothing else of their size is made. (On a GPU, and of 16-bit parameters, the backward pass reads the parameters again instead.)

    Args:
        x: images of one or three colours: ``(*batch, H, W, C)``, or ``(*batch, C, H, W)`` for ``layout="nchw"``; in [0, 1] in any
            floating dtype or bool, or levels as uint8, as in :func:`discretized_logistic_log_prob`. VDVAE and NVAE map the same images
            to [-1, 1], which is done here. Data get no gradient.
        params: any floating dtype; the shape of ``x`` with 10 K parameters (3 K for one colour) in the place of the colours: the K logits
            of the weights, then for each colour K locations, K log scales and K coefficients (one colour has none). Batch dimensions
            broadcast.
        bits: 1 to 8.
        layout: ``"nhwc"``, as of VDVAE, or ``"nchw"``, as of NVAE; memory may lie in either order (``channels_last``).
        convention: ``"exact"``: bins that meet, with true ends. ``"vdvae"`` and ``"nvae"`` give the values of these two
            implementations: the last bin begins at .999 or .99 (so that NVAE's holds two levels), and a bin whose probability is at most
            1e-5 gets the density at its middle times its width. VDVAE's own loss is this, times -1, divided by ``H W C``.
        check_data: True: look at the values of the arguments first, see :class:`checks`.

    Returns:
        float32 (float64 if any argument is), one value per image, not reduced over the batch. Differentiable in ``params``.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected; also if ``x`` requires grad.

    Example:
        >>> import torch, vae_fast
        >>> x = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
        >>> params = torch.randn(4, 32, 32, 100, requires_grad=True)  # 10 components
        >>> vae_fast.discretized_logistic_mixture_log_prob(x, params).sum().backward()
        >>> params.grad.shape
        torch.Size([4, 32, 32, 100])
    """
    levels = _levels(bits)
    check.one_of("layout", layout, tuple(LAYOUTS))
    check.one_of("convention", convention, tuple(CONVENTIONS))
    check.tensor("x", x, check.TARGETS)
    check.tensor("params", params)
    check.same_device(params=params, x=x)
    dim = LAYOUTS[layout]
    colours = _checked_image(x, params, dim, layout)
    if x.requires_grad:
        raise ValueError("x requires grad: expected data without one, a level has no derivative; detach it")
    if values.wanted(check_data):
        values.require(("x", x, "unit"), ("params", params, "finite"))
        _look_at_levels(x, levels)
    if dim == -3 and params.stride(-3) == 1 and params.shape[-3] > 1:  # channels_last: the other layout, as it lies in memory
        x, params, dim = x.movedim(-3, -1), params.movedim(-3, -1), -1
    half, edges = 1.0 / levels, CONVENTIONS[convention]
    low, high = (half - 1.0, 1.0 - half) if edges is None else edges
    term = f"discretized_logistic_mixture.{'rgb' if colours == 3 else 'grey'}.{'exact' if edges is None else 'thin'}"
    numbers = [levels, stretch(x, levels), low, high, LEAST_LOG_SCALE]
    k = kernels()
    out: Tensor = (reference if k is None else k).group(x, params, term, numbers, dim, 3)
    return out


def _levels(bits: int) -> float:
    """The greatest level."""
    check.positive_int("bits", bits)
    if bits > 8:
        raise ValueError(f"bits={bits}: expected 1 to 8")
    return float(2**bits - 1)


def stretch(x: Tensor, levels: float) -> float:
    """What x is multiplied by: bytes are read as ``k / 255`` and mean level k."""
    return 255.0 / levels if x.dtype == torch.uint8 else 1.0


def _look_at_levels(x: Tensor, levels: float) -> None:
    """Refuse a byte that is no level: fewer bits than 8 leave some."""
    if x.dtype == torch.uint8:
        values.classes("x", x, int(levels) + 1, "levels")


def _checked_image(x: Tensor, params: Tensor, dim: int, layout: str) -> int:
    """The number of colours."""
    place = "(*batch, H, W, C)" if layout == "nhwc" else "(*batch, C, H, W)"
    if x.ndim < 3 or x.shape[dim] not in (1, 3):
        raise ValueError(f"x has shape {tuple(x.shape)}: expected {place} with 1 or 3 colours C (layout={layout!r})")
    colours = x.shape[dim]
    slots = 3 if colours == 1 else 10
    if params.ndim < 3 or params.shape[dim] == 0 or params.shape[dim] % slots:
        raise ValueError(
            f"params has shape {tuple(params.shape)}: expected {place} with C a multiple of {slots}, for x of shape {tuple(x.shape)} "
            f"(layout={layout!r})"
        )
    pixels = slice(-3, -1) if dim == -1 else slice(-2, None)
    if x.shape[pixels] != params.shape[pixels]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, params has shape {tuple(params.shape)}: expected the same H and W (layout={layout!r})"
        )
    check.broadcast_shapes("batch dimensions: ", x=x.shape[:-3], params=params.shape[:-3])
    return colours

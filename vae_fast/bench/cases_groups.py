"""Likelihoods over groups of parameters: mixtures of discretised logistics and classes at every pixel, counts of a whole catalogue."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, softplus

import vae_fast
from vae_fast.bench.case import Case, plain
from vae_fast.bench.likelihood_case import Input, dense_counts, dense_of, normal, row_wise, sparse_counts, stored_sparse

SPARE = 0.1  # of inputs and gradients together


def levels(shape: tuple[int, ...], device: str, g: torch.Generator) -> Tensor:
    """Bytes."""
    return torch.randint(256, shape, device=device, generator=g, dtype=torch.uint8)


def plain_mixture(x: Tensor, params: Tensor) -> Tensor:
    """NVAE's and PixelCNN++'s formula, (B, C, H, W), with differences of sigmoids, in the exact bins."""
    y = (2.0 / 255.0) * x.to(params.dtype).unsqueeze(2) - 1.0
    logits, rest = params[:, : params.shape[1] // 10], params[:, params.shape[1] // 10 :].unflatten(1, (3, 3, -1))
    loc, log_scale, c = rest[:, :, 0], rest[:, :, 1].clamp(min=-7.0), rest[:, :, 2].tanh()
    red, green = y[:, 0], y[:, 1]
    loc = torch.stack([loc[:, 0], loc[:, 1] + c[:, 0] * red, loc[:, 2] + c[:, 1] * red + c[:, 2] * green], 1)
    inverse = (-log_scale).exp()
    above, below = inverse * (y - loc + 1.0 / 255.0), inverse * (y - loc - 1.0 / 255.0)
    middle = inverse * (y - loc)
    mass = above.sigmoid() - below.sigmoid()
    density = middle - log_scale - 2.0 * softplus(middle) - math.log(127.5)
    inside = torch.where(mass > 1e-5, mass.clamp(min=1e-12).log(), density)
    bins = torch.where(y < -0.999, logsigmoid(above), torch.where(y > 0.999, -softplus(below), inside))
    return (bins.sum(1) + logits.log_softmax(1)).logsumexp(1).flatten(1).sum(-1)


def ours_nchw(x: Tensor, params: Tensor) -> Tensor:
    """The same values."""
    return vae_fast.discretized_logistic_mixture_log_prob(x, params, layout="nchw", convention="vdvae")


def plain_nhwc(x: Tensor, params: Tensor) -> Tensor:
    """The same formula."""
    return plain_mixture(x.movedim(-1, 1), params.movedim(-1, 1))


def ours_nhwc(x: Tensor, params: Tensor) -> Tensor:
    """The same values."""
    return vae_fast.discretized_logistic_mixture_log_prob(x, params, convention="vdvae")


def plain_categorical(x: Tensor, logits: Tensor) -> Tensor:
    """Of torch, classes last."""
    return -cross_entropy(logits.flatten(0, -2), x.flatten().long(), reduction="none").view(x.shape).flatten(1).sum(-1)


def ours_categorical(x: Tensor, logits: Tensor) -> Tensor:
    """Of images of one colour."""
    return vae_fast.categorical_log_prob(x, logits, event_dim=2)


def pixels(batch: int, side: int, components: int) -> list[Case]:
    """Of square images.

    Example:
        >>> [case.name for case in pixels(4, 8, 3)][0]
        'discretized_logistic_mixture_log_prob, NHWC'
    """
    sizes = {"B": batch, "H": side, "W": side}
    count = batch * side * side
    last, first = (batch, side, side), (batch, 3, side, side)
    spread = normal(spread=0.7)
    each = (60, 60)  # per parameter: a third of a component's colour
    return [
        row_wise(
            "discretized_logistic_mixture_log_prob, NHWC",
            {**sizes, "K": components},
            [Input((*last, 3), levels, learned=False, stored=3 * count), Input((*last, 10 * components), spread)],
            ours_nhwc,
            plain_nhwc,
            each,
            spare=SPARE,
        ),
        row_wise(
            "discretized_logistic_mixture_log_prob, NCHW",
            {**sizes, "K": components},
            [Input(first, levels, learned=False, stored=3 * count), Input((batch, 10 * components, side, side), spread)],
            ours_nchw,
            plain_mixture,
            each,
            spare=SPARE,
        ),
        row_wise(
            "categorical_log_prob",
            {**sizes, "K": 256},
            [Input(last, levels, learned=False, stored=count), Input((*last, 256), normal())],
            ours_categorical,
            plain_categorical,
            (12, 12),
            spare=SPARE,
        ),
    ]


def plain_multinomial(x: Tensor, logits: Tensor) -> Tensor:
    """As Multi-VAE has it."""
    return (x * logits.log_softmax(-1)).sum(-1)


def classes(batch: int, columns: int) -> list[Case]:
    """Of counts of a catalogue, dense and in CSR, one in ten not 0.

    Example:
        >>> [case.name for case in classes(8, 20)]
        ['multinomial_log_prob', 'multinomial_log_prob, CSR']
    """
    sizes, shape = {"B": batch, "D": columns}, (batch, columns)
    dense = Input(shape, dense_counts, learned=False)
    sparse = Input(shape, sparse_counts, learned=False, stored=stored_sparse(shape))
    logits, ours, flops = Input(shape, normal()), vae_fast.multinomial_log_prob, (14, 12)
    over_dense = {"dense": plain(lambda x, t: ours(dense_of(x), t))}
    return [
        row_wise("multinomial_log_prob", sizes, [dense, logits], ours, plain_multinomial, flops, spare=SPARE),
        row_wise("multinomial_log_prob, CSR", sizes, [sparse, logits], ours, None, flops, over_dense, spare=SPARE),
    ]

"""A decoder's last layer and the loss, for batches whose logits are large: how much memory and how much time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import vae_fast
from vae_fast.bench.case import Case, Inputs, compiled, leaf, plain
from vae_fast.bench.cases_groups import plain_multinomial
from vae_fast.bench.cases_head import plain_bernoulli
from vae_fast.bench.likelihood_case import dense_counts
from vae_fast.training.products import Products

LARGE = 65_536  # from which something is promised
QUARTER = 0.25  # of the plain form's memory at most


def _plain(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return plain_bernoulli(x, F.linear(h, weight, bias)).mean()


def _chunked(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return vae_fast.linear_bernoulli_log_prob(x, h, weight, bias, reduction="mean")


def _chunked_rows(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return vae_fast.linear_bernoulli_log_prob(x, h, weight, bias).mean()


def _whole(donate: bool, x: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    none = h.new_zeros((len(h), 1))  # a posterior that costs nothing
    return vae_fast.elbo_loss(x, F.linear(h, weight, bias), none, none, donate_recon=donate)


def head(batch: int, features: int = 500, data: int = 784) -> Case:
    """``mean(log p(x | linear(h)))``; ours in chunks, beside our loss over whole logits, with and without their memory donated.

    Example:
        >>> head(100).label
        'linear_bernoulli_log_prob, mean, B=100 H=500 D=784'
    """

    def inputs(device: str, g: torch.Generator) -> Inputs:
        x = torch.rand(batch, data, device=device, generator=g)
        h, weight, bias = (torch.randn(s, device=device, generator=g) for s in ((batch, features), (data, features), (data,)))
        return x, leaf(h.relu()), leaf(weight * features**-0.5), leaf(bias)

    big, hidden, weights = batch * data, batch * features, data * features + data
    read = 4 * (big + hidden + weights)
    product = 2 * batch * features * data
    return Case(
        "linear_bernoulli_log_prob, mean",
        {"B": batch, "H": features, "D": data},
        inputs,
        {
            "ours": plain(_chunked),
            "reduction none": plain(_chunked_rows),
            "elbo_loss": plain(lambda *t: _whole(False, *t)),
            "donate_recon": plain(lambda *t: _whole(True, *t)),
            "eager": plain(_plain),
            "compile": compiled(_plain),
        },
        {"forward": read, "both": read + 4 * (hidden + weights)},
        {"forward": product + 8 * big, "both": 3 * product + 12 * big},
        needs={"eager": 6 * big * 4, "compile": 4 * big * 4, "elbo_loss": 3 * big * 4, "donate_recon": 2 * big * 4, "ours": hidden * 4},
        memory_share=QUARTER if batch >= LARGE else None,
    )


def _plain_baskets(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return plain_multinomial(x, F.linear(h, weight, bias)).mean()


def _baskets(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return vae_fast.linear_multinomial_log_prob(x, h, weight, bias, reduction="mean")


def baskets(batch: int, columns: int, features: int = 200) -> Case:
    """``mean(log p(x | linear(h)))`` of counts of a catalogue, one in ten not 0.

    Example:
        >>> baskets(100, 50).label
        'linear_multinomial_log_prob, mean, B=100 H=200 D=50'
    """

    def inputs(device: str, g: torch.Generator) -> Inputs:
        x = dense_counts((batch, columns), device, g)
        h, weight, bias = (torch.randn(s, device=device, generator=g) for s in ((batch, features), (columns, features), (columns,)))
        return x, leaf(h), leaf(weight * features**-0.5), leaf(bias)

    big, hidden, weights = batch * columns, batch * features, columns * features + columns
    read, product = 4 * (big + hidden + weights), 2 * batch * features * columns
    return Case(
        "linear_multinomial_log_prob, mean",
        {"B": batch, "H": features, "D": columns},
        inputs,
        {"ours": plain(_baskets), "eager": plain(_plain_baskets), "compile": compiled(_plain_baskets)},
        {"forward": read, "both": read + 4 * (hidden + weights)},
        {"forward": product + 14 * big, "both": 3 * product + 26 * big},
        needs={"eager": 6 * big * 4, "compile": 4 * big * 4, "ours": hidden * 4},
    )


def _layer_of_a_run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with Products(x.device):
        return F.linear(x, weight, bias)


def layer(batch: int, features: int, outputs: int) -> Case:
    """A linear layer by torch and as :func:`vae_fast.training.fit` runs it on the CPU.

    Example:
        >>> layer(100, 784, 500).label
        'linear layer, B=100 H=784 D=500'
    """

    def inputs(device: str, g: torch.Generator) -> Inputs:
        x, weight, bias = (torch.randn(s, device=device, generator=g) for s in ((batch, features), (outputs, features), (outputs,)))
        return leaf(x), leaf(weight), leaf(bias)

    read, result = 4 * (batch * features + outputs * features + outputs), 4 * batch * outputs
    product = 2 * batch * features * outputs
    return Case(
        "linear layer",
        {"B": batch, "H": features, "D": outputs},
        inputs,
        {"ours": plain(_layer_of_a_run), "eager": plain(F.linear)},
        {"forward": read + result, "both": 2 * read + 2 * result},
        {"forward": product, "both": 3 * product},
    )


def linear(device: str, quick: bool) -> list[Case]:
    """A batch whose logits are small, and one whose are large; on the CPU, the layers of a small batch."""
    heads = [head(512), baskets(64, 300)] if quick else [head(1024), head(65_536), baskets(4096, 20_000)]
    layers = [layer(100, 784, 500), layer(100, 500, 784)] if device == "cpu" else []
    return [*heads, *layers]

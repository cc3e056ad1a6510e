"""Distributions over black-and-white digits: independent pixels, a Markov chain of them, and a neural autoregressive model.

    python examples/pixels.py [--quick] [--out DIR] [--dataset mnist]

All three give exact log-likelihoods. Writes pixels.png and pixels.json.
"""

import itertools
import math
from typing import Any

import torch
from _common import draw_sheet, finish, learn, load, options, save, table, unit
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from vae_fast import bernoulli_log_prob


class Independent(nn.Module):
    """p(x) = prod_i p(x_i): one number for each pixel."""

    name = "independent pixels"

    def __init__(self, x: Tensor) -> None:
        """Maximum likelihood, with half a count of either value added."""
        super().__init__()
        self.logits = torch.logit((x.double().sum(0) + 0.5) / (len(x) + 1.0)).float()
        self.size = x.shape[1]

    def log_prob(self, x: Tensor) -> Tensor:
        """Nats per image."""
        return bernoulli_log_prob(x, self.logits)

    def sample(self, n: int) -> Tensor:
        """Draw images."""
        return torch.bernoulli(self.logits.sigmoid().expand(n, -1))


class Markov(nn.Module):
    """p(x) = p(x_1) prod_i p(x_i | x_(i-1)), pixels row by row: two numbers for each pixel but the first."""

    name = "Markov chain of pixels"

    def __init__(self, x: Tensor) -> None:
        """Maximum likelihood, with half a count of either value added."""
        super().__init__()
        x = x.double()
        before, after = x[:, :-1], x[:, 1:]
        ones = torch.stack(((1.0 - before) * after, before * after)).sum(1) + 0.5
        counts = torch.stack((1.0 - before, before)).sum(1) + 1.0
        self.first = torch.logit((x[:, :1].sum(0) + 0.5) / (len(x) + 1.0)).float()
        self.logits = torch.logit(ones / counts).float()
        self.size = 2 * x.shape[1] - 1

    def log_prob(self, x: Tensor) -> Tensor:
        """Nats per image."""
        given = torch.where(x[:, :-1] > 0.5, self.logits[1], self.logits[0])
        return bernoulli_log_prob(x, torch.cat((self.first.expand(len(x), 1), given), dim=1))

    def sample(self, n: int) -> Tensor:
        """Draw images, pixel after pixel."""
        pixels = [torch.bernoulli(self.first.sigmoid().expand(n))]
        for logits in self.logits.T:
            pixels.append(torch.bernoulli(torch.where(pixels[-1] > 0.5, logits[1], logits[0]).sigmoid()))
        return torch.stack(pixels, dim=1)


class MaskedLinear(nn.Linear):
    """A linear layer some of whose weights are held at zero."""

    def __init__(self, mask: Tensor) -> None:
        """The mask is ``(outputs, inputs)``."""
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.float())

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return functional.linear(x, self.weight * self.mask, self.bias)


class Autoregressive(nn.Module):
    """p(x) = prod_i p(x_i | x_1, ..., x_(i-1)), all conditionals by one masked network (Germain and others 2015)."""

    name = "neural autoregressive"

    def __init__(self, pixels: int, hidden: int) -> None:
        """One hidden layer, and a direct connection past it."""
        super().__init__()
        order, degree = torch.arange(pixels), torch.arange(hidden) % max(1, pixels - 1)
        self.hidden = MaskedLinear(degree[:, None] >= order)  # hidden unit of degree m sees pixels 0..m
        self.out = MaskedLinear(order[:, None] > degree)
        self.direct = MaskedLinear(order[:, None] > order)
        self.size = int(sum(layer.mask.sum() for layer in (self.hidden, self.out, self.direct))) + hidden + pixels

    def forward(self, x: Tensor) -> Tensor:
        """The logits of every pixel given those before it."""
        return self.out(self.hidden(x).relu()) + self.direct(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """Nats per image, in one pass."""
        return bernoulli_log_prob(x, self(x))

    def loss(self, x: Tensor) -> Tensor:
        """The negative mean log-likelihood."""
        return -self.log_prob(x).mean()

    def sample(self, n: int) -> Tensor:
        """Draw images: a pass for each pixel."""
        x = torch.zeros(n, self.direct.out_features)
        for i in range(x.shape[1]):
            x[:, i] = torch.bernoulli(self(x)[:, i].sigmoid())
        return x


def total_probability(x: Tensor, epochs: int) -> dict[str, float]:
    """The sum of p(x) over every x, for the three models of ten pixels: 1 if the log-likelihoods are exact."""
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=x.shape[1])))
    deep = Autoregressive(x.shape[1], 32)
    learn(deep, x, epochs)
    with torch.no_grad():
        return {model.name: model.log_prob(every).double().exp().sum().item() for model in (Independent(x), Markov(x), deep)}


def main() -> None:
    """Train, print, draw."""
    args = options(__doc__, "mnist")
    found = load(args.dataset)
    n, epochs, hidden = min(len(found.train), 20_000), (30 if args.quick else 25), (100 if args.quick else 500)
    x, test = ((unit(part) > 0.5).float() for part in (found.train[:n], found.test))
    deep = Autoregressive(x.shape[1], hidden)
    learn(deep, x, epochs)
    shape, rows, fits = found.image_shape, [test[:18], test[18:36]], []
    with torch.no_grad():
        for model in (Independent(x), Markov(x), deep):
            row = {"model": model.name, "parameters": model.size}
            for name, part in (("train", x), ("test", test)):
                row[f"{name}_log_likelihood"] = sum(model.log_prob(p).double().sum().item() for p in part.split(1000)) / len(part)
            row["bits_per_pixel"] = -row["test_log_likelihood"] / x.shape[1] / math.log(2.0)
            fits.append(row)
            rows += model.sample(36).split(18)
            print("  ".join(f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()))
    middle = shape[0] // 2 * shape[1] + shape[1] // 2
    totals = total_probability(x[:2000, middle - 5 : middle + 5], 5)
    print("sum of p(x) over all x of ten pixels:", {name: round(total, 6) for name, total in totals.items()})
    figure = Figure(figsize=(9.4, 4.0), layout="constrained")
    labels = [label for name in ("data", "independent", "Markov", "autoregressive") for label in (name, "")]
    draw_sheet(figure.add_subplot(), rows, shape, labels, "Black-and-white digits, and draws from three models of them")
    save(figure, args.out / "pixels.png")
    results = {"dataset": args.dataset, "pixels": x.shape[1], "train_images": n, "test_images": len(test)}
    finish(args, results | {"epochs": epochs, "hidden": hidden, "fits": fits, "total_probability": totals}, ("pixels.png",))


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    d = r["pixels"]
    deck = {Independent.name: "d", Markov.name: "2d − 1", Autoregressive.name: "those of its networks"}
    rows = [
        [
            f["model"],
            f"{f['parameters']:,}",
            deck[f["model"]],
            f"{f['train_log_likelihood']:.2f}",
            f"{f['test_log_likelihood']:.2f}",
            f"{f['bits_per_pixel']:.3f}",
        ]
        for f in r["fits"]
    ]
    worst = max(abs(total - 1.0) for total in r["total_probability"].values())
    return f"""\
## Distributions over pixels: `{r["command"]}`

Images of {d} pixels that are black or white: a table of their probabilities needs 2^{d} − 1 numbers, about 10^{int(d * math.log10(2.0))}.
The deck's ways out: independent pixels (*too strong a hypothesis, no useful samples*), the Markov property, and the chain rule with neural
networks for its conditionals. All give exact log-likelihoods (for ten pixels, the probabilities of all 1,024 images sum to 1 within
{worst:.0e}). {r["train_images"]:,} training and {r["test_images"]:,} test images of {r["dataset"]}, binarised at ½; the network has one
hidden layer of {r["hidden"]} masked units, {r["epochs"]} epochs.

{table(["model", "parameters", "the deck", "training, nats", "test, nats", "test, bits per pixel"], rows)}

![Draws of the three models](pictures/pixels.png)
"""


if __name__ == "__main__":
    main()

"""The thesis's section 5.2: a linear classifier of the latent means against one of the pixels, with 100 labels and with all.

    python examples/thesis_classifier.py [--quick | --full] [--out DIR] [--runs DIR] [--digit N]

Writes thesis_classifier.png, thesis_certainty.png and thesis_classifier.json. The encoder is the one that thesis_training.py trains.
"""

import argparse
import warnings
from typing import Any

import torch
from _common import finish, save, table, unit
from _thesis import Trained, latents, means, thesis_options, train_labels, trained
from matplotlib.figure import Figure
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vae_fast.models import MLPVAE
from vae_fast.training.products import Products

#: The source: share of test digits read right from latent means and from pixels; its latent dimensions, epochs and learning rate.
SOURCE_ACCURACY = {"means": 0.98, "pixels": 0.92}
LATENT, EPOCHS, LR, BATCH = 50, 5, 0.1, 100
SEEDS = 3
LABELS = (100, 300, 1000, 3000, 10_000, 55_000)
#: Each way of reading digits: its key, its name, its colour.
METHODS = {
    "pixels": ("pixels", "#8a8a8a"),
    "frozen": ("latent means, encoder frozen", "#1f5fa8"),
    "tuned": ("latent means, encoder fine-tuned", "#d9772b"),
    "anew": ("the same network from random weights", "#8d4a9e"),
}


class Reading(nn.Module):
    """The source's classifier: an encoder's means, and a linear layer drawn as the source draws it."""

    def __init__(self, model: MLPVAE) -> None:
        """Its encoder is used, not copied."""
        super().__init__()
        self.encoder = model.encoder
        self.head = nn.Linear(model.latent_dim, 10)
        for parameter in self.head.parameters():
            nn.init.normal_(parameter, std=model.latent_dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, pixels)`` to logits of the ten digits."""
        means: Tensor = self.encoder(x)[0]
        logits: Tensor = self.head(means)
        return logits


def descend(network: Reading, x: Tensor, y: Tensor, steps: int) -> None:
    """The source's training: stochastic gradient descent on the cross-entropy, which moves the encoder as well as the linear layer."""
    optimizer = torch.optim.SGD(network.parameters(), LR)
    order: list[Tensor] = []
    with Products(x.device):
        for _ in range(steps):
            if not order:
                order = [rows for rows in torch.randperm(len(x)).split(BATCH) if len(rows) == min(BATCH, len(x))]
            rows = order.pop()
            optimizer.zero_grad()
            cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()


@torch.no_grad()
def probabilities(network: Reading, x: Tensor) -> Tensor:
    """Of each digit, ``(n, 10)``."""
    return torch.cat([network(part).softmax(-1) for part in x.split(1000)])


def regression(x: Tensor, y: Tensor, test: Tensor) -> Tensor:
    """Multinomial logistic regression with scikit-learn's penalty; the probabilities of each digit of the test images, ``(n, 10)``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(max_iter=300).fit(x.numpy(), y.numpy())
    found = torch.zeros(len(test), 10)
    found[:, torch.from_numpy(fitted.classes_)] = torch.from_numpy(fitted.predict_proba(test.numpy())).float()
    return found


def readings(t: Trained, x: Tensor, y: Tensor, test: Tensor, steps: int) -> dict[str, Tensor]:
    """Probabilities of the test digits by every method, learned from the same labelled images."""
    found = {"pixels": regression(x, y, test), "frozen": regression(means(t.model, x), y, means(t.model, test))}
    for name in ("tuned", "anew"):
        copy = MLPVAE(t.model.latent_dim, t.model.data_dim, t.model.hidden_dim)
        if name == "tuned":
            copy.load_state_dict(t.model.state_dict())
        network = Reading(copy)
        descend(network, x, y, steps)
        found[name] = probabilities(network, test)
    return found


def right(found: Tensor, labels: Tensor) -> Tensor:
    """Which digits are read right."""
    return found.argmax(-1) == labels


def draw_curves(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Share read wrong by number of labels; the band is the seeds' range."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for method, (name, colour) in METHODS.items():
        mine = [r for r in rows if r["method"] == method]
        counts = [r["labels"] for r in mine]
        axes.plot(counts, [1.0 - r["accuracy"] for r in mine], color=colour, marker="o", ms=4, lw=1.6, label=name)
        axes.fill_between(counts, [1.0 - r["most"] for r in mine], [1.0 - r["least"] for r in mine], color=colour, alpha=0.18, lw=0)
    if not args.quick:
        for name, share in SOURCE_ACCURACY.items():
            axes.axhline(1.0 - share, color="#222222", lw=0.9, ls=":")
            place = {"transform": axes.get_yaxis_transform(), "ha": "left", "va": "bottom", "fontsize": 8}
            axes.text(0.005, 1.0 - share, f"the source, {name}: {share:.0%} right", **place)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(counts, [f"{c:,}" for c in counts], minor=False)
    ticks = [share for share in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8) if 0.9 * min(1 - r["most"] for r in rows) < share]
    axes.set_yticks(ticks, [f"{share:.0%}" for share in ticks])
    axes.minorticks_off()
    axes.set_xlabel("labelled training digits")
    axes.set_ylabel("test digits read wrong")
    axes.grid(color="#e6e6e6", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    save(figure, args.out / "thesis_classifier.png")


def draw_certainty(
    args: argparse.Namespace, image: Tensor, shape: tuple[int, int], found: dict[str, Tensor], label: int, digit: int
) -> None:
    """A test digit, and beside it what each classifier thinks it is."""
    figure = Figure(figsize=(10.4, 2.7), layout="constrained")
    shown = [name for name in METHODS if name in found]
    first, *rest = figure.subplots(1, 1 + len(shown), width_ratios=[0.8] + [1.0] * len(shown))
    first.imshow(image.view(shape).numpy(), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    first.set_axis_off()
    first.set_title(f"test digit {digit:,}: a {label}", loc="left", fontsize="small")
    for axes, name in zip(rest, shown, strict=True):
        p = found[name].tolist()
        colours = ["#3a8f4d" if k == label else "#c44e52" for k in range(10)]
        axes.bar(range(10), p, color=colours)
        axes.set_ylim(0.0, 1.08)
        axes.set_xticks(range(10))
        most = max(range(10), key=p.__getitem__)
        axes.annotate(f"{p[most]:.0%}", (most, p[most]), (0, 1), textcoords="offset points", ha="center", fontsize=8)
        axes.set_title(METHODS[name][0].replace(", encoder", ",\nencoder"), loc="left", fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("digit", fontsize="small")
    rest[0].set_ylabel("probability")
    save(figure, args.out / "thesis_certainty.png")


def main() -> None:
    """Learn from few labels and from many; print, draw."""
    text = "the test digit whose probabilities are drawn (default: the first that pixels and the fine-tuned encoder read differently)"
    args = thesis_options(__doc__, lambda parser: parser.add_argument("--digit", type=int, metavar="N", help=text))
    names = latents(args.quick)
    most = max(names)
    t = trained(args, names[most])
    x, y, test, labels = unit(t.found.train), train_labels(t.setting.dataset), unit(t.found.test), t.found.test_labels
    if args.digit is not None and not 0 <= args.digit < len(test):
        raise SystemExit(f"error: --digit {args.digit}: expected 0 to {len(test) - 1}")
    counts = (30, 100, 300, len(x)) if args.quick else LABELS
    steps = 200 if args.quick else EPOCHS * (len(x) // BATCH)
    rows, last = [], {}
    for count in counts:
        shares: dict[str, list[float]] = {name: [] for name in METHODS}
        for seed in range(args.seed, args.seed + SEEDS):
            torch.manual_seed(seed)
            chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:count]
            last = readings(t, x[chosen], y[chosen], test, steps)
            for name, found in last.items():
                shares[name].append(right(found, labels).double().mean().item())
        for name, values in shares.items():
            rows.append({"labels": count, "method": name, "accuracy": sum(values) / SEEDS, "least": min(values), "most": max(values)})
        print(f"{count:>6} labels: " + "  ".join(f"{name} {sum(values) / SEEDS:.4f}" for name, values in shares.items()), flush=True)
    by_latent = []
    for latent, name in names.items():
        other = t.model if latent == most else trained(args, name).model
        found = regression(means(other, x), y, means(other, test))
        by_latent.append({"dim": latent, "accuracy": right(found, labels).double().mean().item()})
        print(f"latent {latent}: frozen {by_latent[-1]['accuracy']:.4f}", flush=True)
    reads = {name: found.argmax(-1) for name, found in last.items()}
    disagree = (reads["pixels"] != reads["tuned"]).nonzero().flatten()
    digit = int(disagree[0]) if args.digit is None else args.digit
    shown = {name: last[name][digit] for name in ("pixels", "frozen", "tuned")}
    draw_curves(args, rows)
    draw_certainty(args, test[digit], t.found.image_shape, shown, int(labels[digit]), digit)
    ok = {name: right(found, labels) for name, found in last.items()}
    results: dict[str, Any] = {"dataset": t.setting.dataset, "latent": t.setting.latent, "train_images": len(x), "test_images": len(test)}
    results |= {"steps": steps, "seeds": SEEDS, "rows": rows, "frozen_by_latent": by_latent, "encoder": t.made}
    results |= {"differently": len(disagree), "only_pixels_right": int((ok["pixels"] & ~ok["tuned"]).sum())}
    results |= {"only_tuned_right": int((ok["tuned"] & ~ok["pixels"]).sum())}
    certainty = {name: float(found.max(-1).values.mean()) for name, found in last.items()}
    results |= {
        "certainty": certainty,
        "digit": digit,
        "label": int(labels[digit]),
        "probabilities": {k: p.tolist() for k, p in shown.items()},
    }
    finish(args, results, ("thesis_classifier.png", "thesis_certainty.png"))


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    share = {(row["labels"], row["method"]): row["accuracy"] for row in r["rows"]}
    counts = sorted({row["labels"] for row in r["rows"]})
    body = [[f"{n:,}", *(f"{share[n, method]:.2%}" for method in METHODS)] for n in counts]
    head = ["labels", *(name for name, _ in METHODS.values())]
    few, every = counts[0], counts[-1]
    by_latent = table(
        [f"latent {row['dim']}" for row in r["frozen_by_latent"]], [[f"{row['accuracy']:.2%}" for row in r["frozen_by_latent"]]]
    )
    of = {name: f"{p[r['label']]:.1%}" for name, p in r["probabilities"].items()}
    least_frozen = next((n for n in reversed(counts) if share[n, "frozen"] > share[n, "pixels"]), None)
    crossing = "at no number of labels" if least_frozen is None else f"up to {least_frozen:,} labels"
    return f"""\
## The thesis: a linear classifier of latent means: `{r["command"]}`

The thesis (section 5.2) reads digits by multinomial logistic regression from the means of a variational autoencoder with
{r["latent"]} latent dimensions, and from the pixels: {SOURCE_ACCURACY["means"]:.0%} and {SOURCE_ACCURACY["pixels"]:.0%} of the test digits
right. Its listing (appendix F) gives the optimiser every weight, so that the encoder moves too, and draws the encoder's weights anew; no
line of it loads the autoencoder's. So there are four classifiers here: of the pixels, of the means with the encoder as the autoencoder
left it (both scikit-learn's, with its penalty), the source's training ({r["steps"]:,} steps of gradient descent at {LR}, batches of
{BATCH}) from the autoencoder's weights, and the same from random weights, which is the listing as it stands. Share of
{r["test_images"]:,} test digits of {r["dataset"]} read right, means over {r["seeds"]} draws of the labelled digits; the autoencoder has
seen all {r["train_images"]:,} training images, without labels:

{table(head, body)}

![Share read wrong by number of labels](pictures/thesis_classifier.png)

With all labels the fine-tuned encoder gives {share[every, "tuned"]:.2%} and pixels {share[every, "pixels"]:.2%}: the source's comparison.
But the frozen means give {share[every, "frozen"]:.2%}, and the network that never saw the autoencoder {share[every, "anew"]:.2%}: with
all labels it is the labels that move the encoder, not what the autoencoder had learned. That shows with few: from {few:,} labels
{share[few, "tuned"]:.2%} with the autoencoder's weights and {share[few, "anew"]:.2%} without. The frozen means are above the pixels
{crossing}. Frozen, all labels, by latent dimension:

{by_latent}

Of the test digits, {r["differently"]:,} are read differently from pixels and by the fine-tuned encoder: {r["only_tuned_right"]:,} of them
are right only by the encoder, {r["only_pixels_right"]:,} only from pixels. The mean probability of the digit read is
{r["certainty"]["pixels"]:.3f} from pixels, {r["certainty"]["frozen"]:.3f} from frozen means and {r["certainty"]["tuned"]:.3f} fine-tuned.
The first of these digits (`--digit N` draws another) is a {r["label"]}, to which they give {of["pixels"]}, {of["frozen"]} and
{of["tuned"]}:

![A test digit and each classifier's certainty](pictures/thesis_certainty.png)
"""


if __name__ == "__main__":
    main()

"""The thesis's section 5.2: a linear classifier of the latent means against one of the pixels, with 100 labels and with all.

    python examples/thesis_classifier.py [--quick | --full] [--out DIR] [--runs DIR] [--digit N]

Writes thesis_classifier.png, thesis_certainty.png and thesis_classifier.json, and beside the models the classifiers of all labels and what
they make of the first test digits, for `vae-fast explore --readings`. --digit N only draws thesis_certainty_N.png, by those classifiers.
The encoder is the one that thesis_training.py trains.
"""

import argparse
import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from _common import commit, finish, save, table, unit
from _thesis import Trained, latents, means, thesis_options, train_labels, trained
from matplotlib.figure import Figure
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vae_fast import plots
from vae_fast.files import atomic_write
from vae_fast.models import MLPVAE
from vae_fast.training.products import Products

#: The thesis: share of test digits read right from latent means and from pixels; its latent dimensions, epochs and learning rate.
SOURCE_ACCURACY = {"means": 0.98, "pixels": 0.92}
LATENT, EPOCHS, LR, BATCH = 50, 5, 0.1, 100
SEEDS = 3
LABELS = (100, 300, 1000, 3000, 10_000, 55_000)
#: Test digits whose readings are kept for the explorer.
KEPT = 300
#: Each way of reading digits: its key, its name, its colour.
METHODS = {
    "pixels": ("pixels", "#8a8a8a"),
    "frozen": ("latent means, encoder frozen", "#1f5fa8"),
    "tuned": ("latent means, encoder fine-tuned", "#d9772b"),
    "anew": ("the same network from random weights", "#8d4a9e"),
}


class Reading(nn.Module):
    """The thesis's classifier: an encoder's means, and a linear layer, drawn as the thesis draws it unless it is given."""

    def __init__(self, model: MLPVAE, head: nn.Linear | None = None) -> None:
        """The model's encoder is used, not copied."""
        super().__init__()
        self.encoder = model.encoder
        self.head = nn.Linear(model.latent_dim, 10) if head is None else head
        if head is None:
            for parameter in self.head.parameters():
                nn.init.normal_(parameter, std=model.latent_dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, pixels)`` to logits of the ten digits."""
        means: Tensor = self.encoder(x)[0]
        logits: Tensor = self.head(means)
        return logits


def descend(network: Reading, x: Tensor, y: Tensor, steps: int) -> None:
    """The thesis's training: stochastic gradient descent on the cross-entropy, which moves the encoder as well as the linear layer."""
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
def probabilities(network: nn.Module, x: Tensor) -> Tensor:
    """Of each digit, ``(n, 10)``."""
    return torch.cat([network(part).softmax(-1) for part in x.split(1000)])


@torch.no_grad()
def regression(x: Tensor, y: Tensor) -> nn.Linear:
    """Multinomial logistic regression with scikit-learn's penalty, as the layer of its logits; a digit that y lacks has probability 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(max_iter=300).fit(x.numpy(), y.numpy())
    weight, bias = (torch.from_numpy(a).float() for a in (fitted.coef_, fitted.intercept_))
    if len(fitted.classes_) == 2:  # one row, the second class's log-odds
        weight, bias = torch.cat((torch.zeros_like(weight), weight)), torch.cat((torch.zeros_like(bias), bias))
    layer = nn.Linear(x.shape[1], 10)
    layer.weight.zero_()
    layer.bias.fill_(-torch.inf)
    layer.weight[fitted.classes_], layer.bias[fitted.classes_] = weight, bias
    return layer


def classifiers(t: Trained, x: Tensor, y: Tensor, steps: int) -> dict[str, nn.Module]:
    """Every method's, from images to logits, learned from the same labelled images."""
    found: dict[str, nn.Module] = {"pixels": regression(x, y)}
    found["frozen"] = Reading(copy.deepcopy(t.model), regression(means(t.model, x), y))
    for name in ("tuned", "anew"):
        model = MLPVAE(t.model.latent_dim, t.model.data_dim, t.model.hidden_dim)
        if name == "tuned":
            model.load_state_dict(t.model.state_dict())
        network = Reading(model)
        descend(network, x, y, steps)
        found[name] = network
    return found


def keep(path: Path, found: dict[str, nn.Module], made: dict[str, Any]) -> None:
    """Save the classifiers of all methods."""
    with atomic_write(path) as file:
        torch.save({"made": made, "weights": {name: network.state_dict() for name, network in found.items()}}, file)


def kept(path: Path, t: Trained) -> dict[str, nn.Module]:
    """What :func:`keep` saved, of this autoencoder.

    Raises:
        SystemExit: in one line, if it is not there, or of another autoencoder.
    """
    again = "run without --digit first"
    if not path.exists():
        raise SystemExit(f"error: {path}: not there: {again}")
    weights = torch.load(path, weights_only=True)["weights"]
    found: dict[str, nn.Module] = {"pixels": nn.Linear(t.model.data_dim, 10)}
    for name in ("frozen", "tuned", "anew"):
        found[name] = Reading(MLPVAE(t.model.latent_dim, t.model.data_dim, t.model.hidden_dim))
    try:
        for name, network in found.items():
            network.load_state_dict(weights[name])
    except RuntimeError:
        raise SystemExit(f"error: {path}: of an autoencoder of another size: {again}") from None
    same = t.model.encoder.state_dict()
    if not all(torch.equal(same[name], w) for name, w in found["frozen"].encoder.state_dict().items()):  # type: ignore[union-attr, operator]
        raise SystemExit(f"error: {path}: of another autoencoder than the one in {t.setting.name}: {again}")
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
            axes.text(0.005, 1.0 - share, f"the thesis, {name}: {share:.0%} right", **place)
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


def draw_certainty(path: Path, image: Tensor, shape: tuple[int, int], found: dict[str, Tensor], label: int, digit: int) -> None:
    """A test digit, and beside it what each classifier thinks it is."""
    shown = [name for name in METHODS if name in found]
    lines = (len(shown) + 2) // 2
    figure = Figure(figsize=(5.6, 2.6 * lines), layout="constrained")
    first, *rest = figure.subplots(lines, 2).flatten()
    first.imshow(image.view(shape).numpy(), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    first.set_axis_off()
    first.set_title(f"test digit {digit:,}: a {label}", loc="left", fontsize="small")
    for axes in rest[len(shown) :]:
        axes.set_axis_off()
    for axes, name in zip(rest, shown, strict=False):
        plots.draw_reading(axes, found[name].tolist(), label, METHODS[name][0])
        axes.set(xlabel="digit", ylabel="probability")
    save(figure, path)


def draw_digit(args: argparse.Namespace, t: Trained, digit: int) -> None:
    """One test digit as the classifiers that were saved read it."""
    test, label = unit(t.found.test), int(t.found.test_labels[digit])
    found = kept(args.runs / "classifiers.pt", t)
    shown = {name: probabilities(network, test[digit : digit + 1])[0] for name, network in found.items()}
    for name, p in shown.items():
        print(f"{METHODS[name][0]}: " + "  ".join(f"{k} {v:.3f}" for k, v in enumerate(p.tolist())))
    path = args.out / f"thesis_certainty_{digit}.png"
    draw_certainty(path, test[digit], t.found.image_shape, shown, label, digit)
    print(f"wrote {path}")


def keep_readings(path: Path, t: Trained, last: dict[str, Tensor]) -> None:
    """The first test digits and their readings, for the explorer."""
    images = (unit(t.found.test)[:KEPT] * 255.0).round().byte().view(-1, *t.found.image_shape)
    read = torch.stack([last[name][:KEPT] for name in METHODS], 1)
    plots.Readings(images, t.found.test_labels[:KEPT].long(), read, tuple(name for name, _ in METHODS.values())).save(path)


def main() -> None:
    """Learn from few labels and from many; print, draw."""
    text = "only draw test digit N as the classifiers that an earlier run saved read it; nothing is learned"
    args = thesis_options(__doc__, lambda parser: parser.add_argument("--digit", type=int, metavar="N", help=text))
    names = latents(args.quick)
    most = max(names)
    t = trained(args, names[most])
    x, y, test, labels = unit(t.found.train), train_labels(t.setting.dataset), unit(t.found.test), t.found.test_labels
    if args.digit is not None and not 0 <= args.digit < len(test):
        raise SystemExit(f"error: --digit {args.digit}: expected 0 to {len(test) - 1}")
    if args.digit is not None:
        draw_digit(args, t, args.digit)
        return
    counts = (30, 100, 300, len(x)) if args.quick else LABELS
    steps = 200 if args.quick else EPOCHS * (len(x) // BATCH)
    rows, learned, last = [], {}, {}
    for count in counts:
        shares: dict[str, list[float]] = {name: [] for name in METHODS}
        for seed in range(args.seed, args.seed + SEEDS):
            torch.manual_seed(seed)
            chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:count]
            learned = classifiers(t, x[chosen], y[chosen], steps)
            last = {name: probabilities(network, test) for name, network in learned.items()}
            for name, found in last.items():
                shares[name].append(right(found, labels).double().mean().item())
        for name, values in shares.items():
            rows.append({"labels": count, "method": name, "accuracy": sum(values) / SEEDS, "least": min(values), "most": max(values)})
        print(f"{count:>6} labels: " + "  ".join(f"{name} {sum(values) / SEEDS:.4f}" for name, values in shares.items()), flush=True)
    made = {"labels": counts[-1], "seed": args.seed + SEEDS - 1, "steps": steps, "dataset": t.setting.dataset, "commit": commit()}
    keep(args.runs / "classifiers.pt", learned, made)
    keep_readings(args.runs / "readings.npz", t, last)
    by_latent = []
    for latent, name in names.items():
        other = t.model if latent == most else trained(args, name).model
        found = probabilities(regression(means(other, x), y), means(other, test))
        by_latent.append({"dim": latent, "accuracy": right(found, labels).double().mean().item()})
        print(f"latent {latent}: frozen {by_latent[-1]['accuracy']:.4f}", flush=True)
    reads = {name: found.argmax(-1) for name, found in last.items()}
    disagree = (reads["pixels"] != reads["tuned"]).nonzero().flatten()
    digit = int(disagree[0])
    shown = {name: last[name][digit] for name in ("pixels", "frozen", "tuned")}
    draw_curves(args, rows)
    draw_certainty(args.out / "thesis_certainty.png", test[digit], t.found.image_shape, shown, int(labels[digit]), digit)
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
left it (both scikit-learn's, with its penalty), the thesis's training ({r["steps"]:,} steps of gradient descent at {LR}, batches of
{BATCH}) from the autoencoder's weights, and the same from random weights, which is the listing as it stands. Share of
{r["test_images"]:,} test digits of {r["dataset"]} read right, means over {r["seeds"]} draws of the labelled digits; the autoencoder has
seen all {r["train_images"]:,} training images, without labels:

{table(head, body)}

![Share read wrong by number of labels](pictures/thesis_classifier.png)

With all labels the fine-tuned encoder gives {share[every, "tuned"]:.2%} and pixels {share[every, "pixels"]:.2%}: the thesis's comparison.
But the frozen means give {share[every, "frozen"]:.2%}, and the network that never saw the autoencoder {share[every, "anew"]:.2%}: with
all labels it is the labels that move the encoder, not what the autoencoder had learned. That shows with few: from {few:,} labels
{share[few, "tuned"]:.2%} with the autoencoder's weights and {share[few, "anew"]:.2%} without. The frozen means are above the pixels
{crossing}. Frozen, all labels, by latent dimension:

{by_latent}

Of the test digits, {r["differently"]:,} are read differently from pixels and by the fine-tuned encoder: {r["only_tuned_right"]:,} of them
are right only by the encoder, {r["only_pixels_right"]:,} only from pixels. The mean probability of the digit read is
{r["certainty"]["pixels"]:.3f} from pixels, {r["certainty"]["frozen"]:.3f} from frozen means and {r["certainty"]["tuned"]:.3f} fine-tuned.
The first of these digits is a {r["label"]}, to which they give {of["pixels"]}, {of["frozen"]} and {of["tuned"]}:

![A test digit and each classifier's certainty](pictures/thesis_certainty.png)

The thesis goes through the test digits with a slider (its figure 33). So does
`vae-fast explore runs/thesis/mnist-{r["latent"]} --readings runs/thesis/readings.npz`, as a window, or as a page with
`--page classifiers.html`: the digit, what the autoencoder makes of it, and every classifier's bars. The classifiers of all labels are kept
in `runs/thesis` when this script has run; `--digit N` loads them and draws one digit, and nothing is learned again.
"""


if __name__ == "__main__":
    main()

"""Two of the thesis's printed numbers by its own listings: appendix G's classifier of pixels, and the loss before any training.

    python examples/thesis_listings.py [--quick] [--dataset digits|mnist] [--out DIR]

Writes thesis_listings.png and thesis_listings.json. Neither needs a trained model.
"""

import argparse
from typing import Any

import torch
from _common import finish, load, options, save, table, unit
from _thesis import SOURCE, train_labels
from matplotlib.figure import Figure
from torch import Tensor, nn

from vae_fast import categorical_log_prob
from vae_fast.models import MLPVAE
from vae_fast.training import evaluate
from vae_fast.training.products import Products

#: Appendix F, whose settings G takes over: epochs, batch, learning rate, and the latent dimensions that the weights' scale comes from.
EPOCHS, BATCH, LR, LATENT = 5, 100, 0.1, 50
#: The thesis: share of test digits that the classifier reads right; the loss of "epoch 0" by latent dimension.
SHARE = 0.92
EPOCH_0 = {latent: SOURCE[f"mnist-{latent}"][0] for latent in (2, 10, 50)}
SEEDS = 5


def classifier(x: Tensor, y: Tensor, test: Tensor, labels: Tensor, seed: int) -> list[float]:
    """Appendix G as printed: softmax regression by gradient descent, its weights and biases drawn from N(0, 1/50); share right by epoch."""
    torch.manual_seed(seed)
    layer = nn.Linear(x.shape[1], 10)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=LATENT**-0.5)
    optimizer = torch.optim.SGD(layer.parameters(), LR)
    shares = []
    with Products(x.device):
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(x)).split(BATCH):
                if len(rows) == BATCH:  # n_datos / batch_size, rounded down
                    optimizer.zero_grad()
                    (-categorical_log_prob(y[rows], layer(x[rows]), event_dim=0).mean()).backward()
                    optimizer.step()
            with torch.no_grad():
                shares.append((layer(test).argmax(-1) == labels).double().mean().item())
    return shares


def main() -> None:
    """Train the classifier, evaluate models that nothing has trained, print, draw."""
    args = options(__doc__, "mnist")
    found = load(args.dataset)
    x, y, test, labels = unit(found.train), train_labels(args.dataset), unit(found.test), found.test_labels
    shares = [classifier(x, y, test, labels, args.seed + seed) for seed in range(SEEDS)]
    for seed, each in enumerate(shares):
        print(f"seed {seed}: read right after each epoch: " + "  ".join(f"{share:.4f}" for share in each), flush=True)
    before: dict[str, list[float]] = {}
    for latent in EPOCH_0:
        before[str(latent)] = []
        for seed in range(args.seed, args.seed + SEEDS):
            torch.manual_seed(seed)
            before[str(latent)].append(evaluate(MLPVAE(latent, x.shape[1], 500), x[:10_000])["loss"])
        print(f"latent {latent}: loss before training: " + "  ".join(f"{v:.2f}" for v in before[str(latent)]), flush=True)
    draw(args, shares, before)
    results: dict[str, Any] = {"dataset": args.dataset, "train_images": len(x), "test_images": len(test), "epochs": EPOCHS}
    finish(args, results | {"shares": shares, "loss_before_training": before}, ("thesis_listings.png",))


def draw(args: argparse.Namespace, shares: list[list[float]], before: dict[str, list[float]]) -> None:
    """The share read right by epoch; losses before training beside the thesis's."""
    figure = Figure(figsize=(8.8, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for each in shares:
        left.plot(range(1, EPOCHS + 1), each, "o-", color="#1f5fa8", alpha=0.7, ms=4)
    left.set(xlabel="epoch", ylabel="test digits read right", title="Appendix G's classifier, five seeds")
    left.set_xticks(range(1, EPOCHS + 1))
    left.yaxis.set_major_formatter(lambda share, _: f"{share:.1%}")
    if args.dataset == "mnist":
        left.axhline(SHARE, color="#d9772b", ls="--")
        left.text(1, SHARE, "the thesis: 92%", va="bottom", color="#a8561a")
    places = range(len(before))
    for place, (latent, losses) in zip(places, before.items(), strict=True):
        right.plot([place] * len(losses), losses, "o", color="#1f5fa8", alpha=0.7, label="five seeds" if place == 0 else None)
        if args.dataset == "mnist":
            right.plot(
                [place - 0.2, place + 0.2], [EPOCH_0[int(latent)]] * 2, color="#d9772b", lw=3, label="the thesis" if place == 0 else None
            )
    right.set_xticks(list(places), [f"latent {latent}" for latent in before])
    right.set(ylabel="loss, nats per image", title="Before training (epoch 0)")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e6e6", lw=0.7)
    save(figure, args.out / "thesis_listings.png")


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    ends = [each[-1] for each in r["shares"]]
    mean = sum(ends) / len(ends)
    rows = []
    for latent, losses in r["loss_before_training"].items():
        rows.append([latent, f"{EPOCH_0[int(latent)]:.2f}", f"{sum(losses) / len(losses):.2f}", f"{min(losses):.2f} to {max(losses):.2f}"])
    inside = [n for n, v in r["loss_before_training"].items() if min(v) <= EPOCH_0[int(n)] <= max(v)]
    outside = [n for n in r["loss_before_training"] if n not in inside]
    said = f"within the range of the seeds for latent {' and '.join(inside)}" if inside else "outside the range of the seeds"
    said += f", outside it for latent {' and '.join(outside)}" if inside and outside else ""
    return f"""\
## The thesis: two listings as printed: `{r["command"]}`

*Appendix G*, the classifier of the pixels: softmax regression by gradient descent at {LR}, {r["epochs"]} epochs in batches of {BATCH}, its
weights and biases drawn with the standard deviation {LATENT}^−½ of the other classifier's (F). On {r["train_images"]:,} images of
{r["dataset"]} it reads {mean:.2%} of {r["test_images"]:,} test digits right (five seeds: {min(ends):.2%} to {max(ends):.2%}); the thesis
says {SHARE:.0%}. After one epoch it is {sum(each[0] for each in r["shares"]) / len(ends):.2%}.

*Epoch 0* of figures 21 to 26, which the listing (D.9) has no line for: the loss of 10,000 training images before any training, five seeds.
The thesis's is {said}.

{table(["latent", "the thesis", "mean", "five seeds"], rows)}

![Share read right by epoch; losses before training](pictures/thesis_listings.png)
"""


if __name__ == "__main__":
    main()

"""How many samples per image: the variance of the gradient, and a training, when L samples of M images cost what one of L M images does.

    python examples/sgvb.py [--quick] [--dataset digits|mnist] [--out DIR]

Kingma and Welling (2014) give two estimators of the bound from L samples per datapoint (eqs. 6 and 7) and one of the data set's from M of
its N points (eq. 8), and take L = 1 "as long as the minibatch size M was large enough". Writes sgvb.png and sgvb.json.
"""

import argparse
from typing import Any

import torch
from _common import finish, load, options, save, table, unit
from matplotlib.figure import Figure
from torch import Tensor

from vae_fast.models import MLPVAE
from vae_fast.training import evaluate, fit

#: Images that a step decodes: L samples of each of DECODED / L images.
DECODED, LATENT = 100, 20
COUNTS = (1, 2, 5, 10, 25, 100)
KL = {"analytic": "KL in closed form (B, eq. 7)", "sampled": "KL sampled (A, eq. 6)"}
COLOURS = {"analytic": "#1f5fa8", "sampled": "#d9772b"}


def variance(model: MLPVAE, x: Tensor, count: int, images: int, kl: str, repeats: int) -> float:
    """Of the gradient of the mean bound from ``count`` samples of each of ``images`` that are drawn anew, summed over the weights."""
    generator = torch.Generator().manual_seed(1)
    total, squares = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for _ in range(repeats):
        model.zero_grad()
        rows = torch.randint(len(x), (images,), generator=generator)
        model.loss(x[rows], generator=generator, num_samples=count, kl=kl).backward()
        g = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()
        total, squares = total + g, squares + g.square().sum()
    return float((squares - total.square().sum() / repeats) / (repeats - 1))


def train(x: Tensor, hidden: int, count: int, steps: int, seed: int) -> MLPVAE:
    """As many steps of Adam whatever L, each of DECODED decoded images."""
    torch.manual_seed(seed)
    model = MLPVAE(LATENT, x.shape[1], hidden)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(x[torch.randint(len(x), (DECODED // count,))], num_samples=count).backward()
        optimizer.step()
    return model.eval()


def main() -> None:
    """Measure the gradients of one model; train one for each L."""
    args = options(__doc__, "mnist")
    found = load(args.dataset)
    x, test = unit(found.train[:20_000]), unit(found.test[:2_000])
    hidden, steps, repeats = (64, 100, 30) if args.quick else (200, 2000, 300)
    torch.manual_seed(args.seed)
    model = MLPVAE(LATENT, x.shape[1], hidden)
    fit(model, x, epochs=1, batch_size=DECODED, seed=args.seed)
    rows = []
    for kl, name in KL.items():
        for count in COUNTS:
            row: dict[str, Any] = {"name": kl, "samples": count, "images": DECODED // count}
            row["variance"] = variance(model, x, count, DECODED // count, kl, repeats)
            if count <= 25:
                row["variance_all_images"] = variance(model, x, count, DECODED, kl, repeats)
            rows.append(row)
            print(f"{name}: " + "  ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "name"), flush=True)
    trained = []
    for count in COUNTS:
        torch.manual_seed(args.seed)
        loss = evaluate(train(x, hidden, count, steps, args.seed), test)["loss"]
        trained.append({"samples": count, "images": DECODED // count, "test_loss": loss})
        print(f"L {count:>3}, M {DECODED // count:>3}: test loss {loss:.2f}", flush=True)
    draw(args, rows, trained)
    results: dict[str, Any] = {"dataset": args.dataset, "train_images": len(x), "test_images": len(test), "hidden": hidden}
    results |= {"latent": LATENT, "decoded": DECODED, "steps": steps, "repeats": repeats, "gradients": rows, "trained": trained}
    finish(args, results, ("sgvb.png",))


def draw(args: argparse.Namespace, rows: list[dict[str, Any]], trained: list[dict[str, Any]]) -> None:
    """Variance against L at a fixed cost and with a fixed batch; where the trainings ended."""
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kl, colour in COLOURS.items():
        mine = [r for r in rows if r["name"] == kl]
        left.loglog([r["samples"] for r in mine], [r["variance"] for r in mine], "o-", color=colour, label=KL[kl])
        more = [r for r in mine if "variance_all_images" in r]
        left.loglog([r["samples"] for r in more], [r["variance_all_images"] for r in more], "s--", color=colour, mfc="white")
    left.plot([], [], "o-", color="#555555", label=f"a step decodes {DECODED}: M = {DECODED} / L")
    left.plot([], [], "s--", color="#555555", mfc="white", label=f"M = {DECODED}: L times the cost")
    left.set(xlabel="samples per image, L", ylabel="variance of the gradient")
    left.legend(frameon=False, fontsize="small")
    right.plot([r["samples"] for r in trained], [r["test_loss"] for r in trained], "o-", color=COLOURS["analytic"])
    right.set(xlabel=f"samples per image, L (M = {DECODED} / L)", ylabel="test loss after as many steps, nats", xscale="log")
    for axes in (left, right):
        axes.set_xticks(COUNTS, [str(c) for c in COUNTS])
        axes.minorticks_off()
        axes.grid(color="#e6e6e6", lw=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, args.out / "sgvb.png")


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    of = {(g["name"], g["samples"]): g for g in r["gradients"]}
    ends = {t["samples"]: t["test_loss"] for t in r["trained"]}
    body = []
    for count, end in ends.items():
        each = [of[kl, count] for kl in KL]
        fixed = [f"{g['variance_all_images']:,.0f}" if "variance_all_images" in g else "" for g in each]
        body.append([count, each[0]["images"], *(f"{g['variance']:,.0f}" for g in each), *fixed, f"{end:.2f}"])
    m = r["decoded"]
    head = ["L", "M", "variance, B", "variance, A", f"B with M = {m}", f"A with M = {m}", "test loss"]
    one, many = of["analytic", 1], of["analytic", 25]
    saved = 1.0 - many["variance_all_images"] / one["variance_all_images"]
    best = min(ends, key=lambda count: ends[count])
    verdict = "L = 1 ends lowest" if best == 1 else f"L = {best} ends lowest, {ends[1] - ends[best]:.2f} nats below L = 1"
    return f"""\
## How many samples per image: `{r["command"]}`

Kingma and Welling (2014) estimate the bound from L samples of z per image (`VAE.loss(num_samples=L)`), with the KL drawn (`kl="sampled"`,
their estimator A) or in closed form (B), and that of the data set from M of its N images (`dataset_size=N`); they found that L = 1 will
do where M is large. What a step decodes costs most of it, so let L M = {m} stay: `MLPVAE` with {r["latent"]} latent dimensions and
{r["hidden"]} hidden units on {r["train_images"]:,} images of {r["dataset"]}; variance of the gradient in all weights over
{r["repeats"]:,} batches, after one epoch; loss of {r["test_images"]:,} test images after {r["steps"]:,} steps of Adam, from one seed:

{table(head, body)}

At equal cost more images are worth more than more samples of each: from L = 1 to L = 10 the variance grows
{of["analytic", 10]["variance"] / one["variance"]:.1f} times, and {verdict}. Paid for on top (M = {m}, 25 times the cost), 25 samples take
away {saved:.0%} of the variance: the rest is the choice of images. The KL in closed form, where there is one, costs nothing: drawn
instead, the variance at L = 1 is {of["sampled", 1]["variance"] / one["variance"]:.2f} times as large.

![Variance of the gradient and test loss against L](pictures/sgvb.png)
"""


if __name__ == "__main__":
    main()

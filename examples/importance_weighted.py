"""Importance-weighted autoencoders of binarised digits: the bound of K = 1, 5 and 50 samples, beside the paper's figures.

    python examples/importance_weighted.py [--quick] [--dataset digits|mnist] [--minutes A B C] [--images N] [--runs DIR] [--out DIR]

Burda, Grosse and Salakhutdinov (2016), table 1, one stochastic layer: 2 x 200 tanh units on either side, 50 latents, pixels that are drawn
anew at every step, batches of 20, and a step of Adam that falls with the passes over the data. A run that was stopped goes on where it was,
to the same bits; more minutes make it go further. Writes importance_weighted.png and importance_weighted.json.

The black and white pixels are a tensor, drawn once a step. The likelihood's kernel could draw them by itself, but the encoder has to see
the very pixels that the likelihood scores: they are in memory before the kernel begins. And with K samples it would draw each of them K
times, and again in the backward pass. What the draw costs beside a step is measured here.
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from _common import PICTURES, finish, load, options, save, table, unit
from _thesis import ROOT, made_of
from matplotlib.figure import Figure
from torch import Tensor, nn

import vae_fast
from vae_fast.data import binarized
from vae_fast.files import write_json
from vae_fast.models import VAE
from vae_fast.training import checkpoint, evaluate_log_prob, fit, progress_bar, say

#: K, and the paper's -log p(x) of MNIST's test images for it, in nats, by 5,000 importance samples.
PAPER = {1: 86.76, 5: 85.54, 50: 84.78}
#: A reimplementation's (github.com/nbip/IWAE, dynamic binarisation).
REPEATED = {1: 87.75, 5: 85.50, 50: 84.65}
#: Passes over the data: 3^i with the learning rate 0.001 * 10^(-i/7), i = 0, ..., 7.
STAGES = 8
PASSES = sum(3**i for i in range(STAGES))
#: Samples of the bound that is followed through the passes, the same for every model.
FOLLOWED = 50
COLOURS = {1: "#1f5fa8", 5: "#d9772b", 50: "#3a8f4d"}


class ImportanceWeighted(VAE):
    """A VAE whose loss is the importance-weighted bound of ``count`` samples; for 1 it is the ELBO, its KL by the sample."""

    def __init__(self, pixels: int, hidden: int, latent: int, count: int) -> None:
        """Weights as Glorot and Bengio (2010), biases 0."""
        sizes = (pixels, hidden, hidden, 2 * latent), (latent, hidden, hidden, pixels)
        super().__init__(*(tanh_layers(*each) for each in sizes), latent_dim=latent)
        self.count = count

    def loss(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Nats per image."""
        out = self(x, num_samples=self.count)
        return vae_fast.iwae_loss(x, out.recon, out.z, out.mu, out.logvar)


def tanh_layers(*sizes: int) -> nn.Sequential:
    """Linear layers with tanh between them."""
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(sizes):
        layers += [nn.Linear(n, m), nn.Tanh()]
        nn.init.xavier_uniform_(layers[-2].weight)
        nn.init.zeros_(layers[-2].bias)
    return nn.Sequential(*layers[:-1])


def stage_of(done: int) -> int:
    """i of the pass that follows ``done`` passes: 3^i passes have it."""
    return next((i for i in range(STAGES) if done < (3 ** (i + 1) - 1) // 2), STAGES - 1)


def marked(done: int) -> bool:
    """Whether the bound is taken after so many passes: each of the first 13, then every third, and so each stage's last."""
    return 0 < done <= 13 or done % 3 == 1


def train(args: argparse.Namespace, setting: dict[str, Any], count: int, x: Tensor, seen: Tensor) -> dict[str, Any]:
    """Train one model for its minutes, from where it was: the model, its history, and ``[passes, bound]`` on ``seen``."""
    folder: Path = args.runs / f"k-{count}"
    file, marks = folder / "checkpoint.pt", folder / "marks.json"
    torch.manual_seed(args.seed)
    model = ImportanceWeighted(x.shape[1], setting["hidden"], setting["latent"], count)
    curve: list[list[float]] = []
    history: list[dict[str, float]] = []
    if file.exists():
        state = checkpoint.load(file)
        model.load_state_dict(state["model"])
        history, curve = state["history"], json.loads(marks.read_text()) if marks.exists() else []
        if "partial" not in state:  # stopped between a checkpoint and its mark, perhaps
            mark(model, seen, len(history), curve, marks)
    steps = -(-len(x) // setting["batch"])
    minutes = setting["minutes"].get(count)

    def due() -> bool:
        spent = sum(record["seconds"] for record in history)
        return len(history) < setting["passes"] and (minutes is None or spent < 60.0 * minutes)

    made = made_of(args, folder, args.seed, due())
    while due():  # a pass at a time: each goes on from the checkpoint of the one before, whether or not the process is another
        history = fit(
            model,
            x,
            epochs=len(history) + 1,
            batch_size=setting["batch"],
            drop_last=False,
            seed=args.seed,
            optimizer=torch.optim.Adam(model.parameters(), 1e-3, eps=1e-4, fused=True),
            schedule=lambda step: 10.0 ** (-stage_of(step // steps) / 7.0),
            transform=binarized,
            checkpoint=file,
            resume=file.exists(),
            config={"samples": count, "hidden": setting["hidden"], "latent": setting["latent"], "dataset": args.dataset},
        )
        mark(model, seen, len(history), curve, marks)
        if curve[-1][0] == len(history):
            last = history[-1]
            say(f"K {count}: pass {len(history)}  loss {last['loss']:.2f}  test bound {-curve[-1][1]:.2f}  {last['seconds']:.1f} s")
    return {"model": model.eval(), "history": history, "curve": curve, "made": made}


def mark(model: VAE, seen: Tensor, done: int, curve: list[list[float]], file: Path) -> None:
    """Take the bound after so many passes, if it is one of those that are shown and not there yet; training's draws stay as they were."""
    if marked(done) and (not curve or curve[-1][0] < done):
        curve.append([done, evaluate_log_prob(model, seen, FOLLOWED)])
        write_json(file, curve)


@torch.no_grad()
def judge(model: VAE, test: Tensor, images: int, samples: int, seed: int) -> dict[str, Any]:
    """log p(x): the bound of 50 samples of all test images, and what 5,000 samples add to it, on as many as there is time for.

    The images of a test set differ by 20 nats and more, what more samples add to one differs little: the sum has nearly the error of all
    images (the first is a control variate).
    """
    generator = torch.Generator().manual_seed(seed)
    few = torch.cat([model.log_prob(part, FOLLOWED, generator=generator) for part in test.split(1000)]).double()
    rows = torch.linspace(0, len(test) - 1, images).round().long()
    parts = []
    with progress_bar(None, images, 0) as bar:
        for part in test[rows].split(50):
            parts.append(model.log_prob(part, samples, generator=generator))
            if bar is not None:
                bar.update(len(part))
    more = torch.cat(parts).double()
    added = more - few[rows]
    found: dict[str, Any] = {"log_prob": float(few.mean() + added.mean()), "standard_error": float(added.std() / len(added) ** 0.5)}
    found |= {"bound": float(few.mean()), "log_prob_of_images": float(more.mean()), "bound_of_images": float(few[rows].mean())}
    own = torch.cat([-model.loss(part)[None] * len(part) for part in test.split(500)]).sum() / len(test)
    return found | {"own_bound": float(own), "active": int((model.encode(test)[0].var(0) > 0.01).sum())}


def cost_of_drawing(model: VAE, x: Tensor, batch: int, rounds: int) -> dict[str, float]:
    """Medians, in milliseconds of the processor, in turns: a draw, a step on what was drawn, one on the same pixels as floats."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 0.0, eps=1e-4, fused=True)
    taken: dict[str, list[float]] = {"draw": [], "step": [], "step_on_floats": []}
    for i in range(rounds):
        rows = x[torch.randint(len(x), (batch,))]
        begin = time.process_time()
        drawn = binarized(rows)
        between = time.process_time()
        as_floats = drawn.float()
        taken["draw"].append(between - begin)
        for name, pixels in (("step", drawn), ("step_on_floats", as_floats))[:: 1 if i % 2 else -1]:
            begin = time.process_time()
            optimizer.zero_grad()
            model.loss(pixels).backward()
            optimizer.step()
            taken[name].append(time.process_time() - begin)
    model.eval()
    found = {f"{name}_ms": 1e3 * statistics.median(values) for name, values in taken.items()}
    return found | {"share": found["draw_ms"] / (found["draw_ms"] + found["step_ms"])}


def more_options(parser: argparse.ArgumentParser) -> None:
    """Its own: how long, and where."""
    text = "of training for K = 1, 5 and 50, in all runs together (default: %(default)s; --quick: 4 passes)"
    parser.add_argument("--minutes", type=float, nargs=len(PAPER), default=[8.0, 12.0, 28.0], metavar=("A", "B", "C"), help=text)
    parser.add_argument("--images", type=int, default=500, help="test images with all importance samples (default: %(default)s)")
    text = "where runs are kept and go on from (default: runs/importance_weighted; with --quick OUT/importance-weighted-quick)"
    parser.add_argument("--runs", type=Path, metavar="DIR", help=text)


def main() -> None:
    """Train the three, judge, draw."""
    args = options(__doc__, "mnist", more_options)
    if args.runs is None:
        beside = ROOT / "runs" if args.out == PICTURES else args.out  # never among the pictures
        args.runs = beside / "importance-weighted-quick" if args.quick else ROOT / "runs" / "importance_weighted"
    found = load(args.dataset)
    x = torch.cat((found.train, found.valid))  # the paper has no images for validation
    test = torch.bernoulli(unit(found.test), generator=torch.Generator().manual_seed(args.seed)).bool()
    setting: dict[str, Any] = {"hidden": 200, "latent": 50, "batch": 20, "passes": PASSES, "samples": 5000, "rounds": 100}
    setting |= {"minutes": dict(zip(PAPER, args.minutes, strict=True))}
    if args.quick:
        setting |= {"hidden": 50, "latent": 10, "passes": 4, "samples": 500, "minutes": {}, "rounds": 20}
    images = min(100 if args.quick else args.images, len(test))
    seen = test[torch.linspace(0, len(test) - 1, min(1000, len(test))).round().long()]
    rows: list[dict[str, Any]] = []
    # All are trained before any is judged: a run that is stopped while it judges has nothing to train again.
    runs = {count: train(args, setting, count, x, seen) for count in PAPER}
    for count, run in runs.items():
        model, history = run["model"], run["history"]
        row: dict[str, Any] = {"samples": count, "passes": len(history), "minutes": sum(r["seconds"] for r in history) / 60.0}
        row |= {"rate": 1e-3 * 10.0 ** (-stage_of(len(history) - 1) / 7.0), "train_loss": history[-1]["loss"], "curve": run["curve"]}
        row |= judge(model, test, images, setting["samples"], args.seed)
        row |= {"drawing": cost_of_drawing(model, x, setting["batch"], setting["rounds"]), "made": run["made"]}
        rows.append(row)
        shown = ("passes", "train_loss", "own_bound", "bound", "log_prob", "standard_error", "active")
        print(f"K {count}: " + "  ".join(f"{k} {row[k]:.6g}" for k in shown), flush=True)
    draw(args, rows)
    results = {"dataset": args.dataset, "train_images": len(x), "test_images": len(test), "images": images, "followed_images": len(seen)}
    results |= {k: setting[k] for k in ("hidden", "latent", "batch", "samples")} | {"threads": torch.get_num_threads(), "fits": rows}
    finish(args, results, ("importance_weighted.png",))


def draw(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """The bound of 50 samples by pass; what all samples and images say at the end; the paper's figures after all its passes."""
    figure = Figure(figsize=(5.0, 6.6), layout="constrained")
    axes = figure.add_subplot()
    for row in rows:
        count, colour = row["samples"], COLOURS[row["samples"]]
        done = [c[0] for c in row["curve"]]
        axes.plot(done, [-c[1] for c in row["curve"]], ".-", color=colour, lw=2, ms=7, label=f"K = {count}" + " (a VAE)" * (count == 1))
        axes.plot(row["passes"], -row["log_prob"], "o", ms=7, mfc="white", mec=colour, mew=2)
        if args.dataset == "mnist":
            axes.axhline(PAPER[count], color=colour, ls=(0, (4, 3)), lw=1.3)
    if args.dataset == "mnist":
        axes.plot([], [], color="#555555", ls=(0, (4, 3)), label=f"the paper's, after {PASSES:,} passes")
    axes.plot([], [], "o", ms=7, mfc="white", mec="#555555", mew=2, label="−log p(x), all samples, at the end")
    least = min(PAPER[50] if args.dataset == "mnist" else 1e9, *(-row["log_prob"] for row in rows))
    most = max(-row["curve"][min(1, len(row["curve"]) - 1)][1] for row in rows)
    axes.set_ylim(least - 0.05 * (most - least), most + 0.05 * (most - least))
    axes.set_xscale("log")
    ticks = [m * 10**e for e in range(4) for m in (1, 2, 5) if m * 10**e <= max(row["passes"] for row in rows)]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.tick_params(labelsize=11)
    axes.set_xlabel("passes over the training images", fontsize=12)
    axes.set_ylabel(f"test images: minus the bound of {FOLLOWED} samples, nats", fontsize=12)
    axes.grid(color="#e6e6e6", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=11, loc="upper center", bbox_to_anchor=(0.45, -0.12))
    save(figure, args.out / "importance_weighted.png", dpi=150)


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    fits = {f["samples"]: f for f in r["fits"]}
    body = []
    for count, f in fits.items():
        name = f"{count}" + (" (a VAE)" if count == 1 else "")
        bounds = [f"{-f[key]:.2f}" for key in ("own_bound", "log_prob")]
        body.append([name, f"{f['passes']:,}", f"{f['minutes']:.0f}", *bounds, f"{f['standard_error']:.2f}", f["active"]])
        body[-1] += [f"{PAPER[count]:.2f}", f"{REPEATED[count]:.2f}"]
    head = ["K", "passes", "minutes", "−bound of K", "−log p(x)", "±", "active latents", "the paper", "nbip/IWAE"]
    one, most = fits[1], fits[50]
    apart = ", ".join(f"{-f['log_prob'] - PAPER[count]:+.2f} (K = {count})" for count, f in fits.items())
    even = min(f["passes"] for f in fits.values())
    at = {count: [-bound for done, bound in f["curve"] if done <= even][-1] for count, f in fits.items()}
    share = [f["passes"] / PASSES for f in fits.values()]
    shares = " and ".join(f"{100 * f['drawing']['share']:.1f}% for K = {count}" for count, f in ((1, one), (50, most)))
    floats = [f["drawing"]["step_on_floats_ms"] / f["drawing"]["step_ms"] for f in (one, most)]
    return f"""\
## Importance-weighted autoencoders: `{r["command"]}`

A published result beside ours: Burda, Grosse and Salakhutdinov (2016), table 1, one stochastic layer. `vae_fast.iwae_loss` with K samples
per image; two layers of {r["hidden"]} tanh units on either side, {r["latent"]} latents, {r["train_images"]:,} images of {r["dataset"]}
made black and white anew at every step, batches of {r["batch"]}, the paper's optimiser and learning rates. log p(x) by {r["samples"]:,}
importance samples: the bound of {FOLLOWED} for all {r["test_images"]:,} test images, and what {r["samples"]:,} add to it, found on
{r["images"]:,} of them (± is the standard error of that; the test images are made black and white by one draw). A latent is active if the
variance of its posterior mean over the test images is above 0.01. nbip/IWAE is a reimplementation with the paper's whole training.

{table(head, body)}

*How far each got*: the paper makes {PASSES:,} passes over the images, 3^i of them with the learning rate 0.001 · 10^(−i/7), i = 0 to
{STAGES - 1}; here it is {", ".join(f"{f['passes']:,} (K = {count})" for count, f in fits.items())}, {min(share):.2%} to {max(share):.2%} of
them. So ours stand apart from the paper's by {apart} nats, which says how much of the training is still to come and nothing of the
paper. *What is seen*: after {even:,} {"pass" if even == 1 else "passes"} each, minus the bound of {FOLLOWED} samples is
{", ".join(f"{v:.2f} (K = {count})" for count, v in at.items())} nats on {r["followed_images"]:,} test
images{verdict(at)}. The same command goes on from there, to the same bits as a run that was never stopped; `--minutes` says how much
further.

![Minus the test bound against passes for three numbers of samples, the paper's figures as lines](pictures/importance_weighted.png)

The black and white pixels are a tensor of bytes, drawn once a step: the encoder must see the pixels that the likelihood scores, so a draw
inside the likelihood's kernel would save neither the memory nor the draw, and would make it K times. The draw takes {shares} of a
step's processor time (medians); pixels that are floats in place of bytes make the step {floats[0]:.2f} and {floats[1]:.2f} times as long.
"""


def verdict(at: dict[int, float]) -> str:
    """Whether more samples are better after as many passes."""
    return ": the more samples, the better, as in the paper" if at[1] > at[5] > at[50] else ", not yet in the paper's order"


if __name__ == "__main__":
    main()

"""Training with larger batches: the loss after equal epochs under three rules for the learning rate, and speed and memory of a step.

    python examples/batch_size.py [--quick | --full] [--out DIR] [--dataset mnist] [--time]

Writes batch_size.png and batch_size.json. The full setting trains 20 models, in about ten minutes on two cores; stopped, it goes on where
it was. --time, on a machine that does nothing else, adds samples per second and memory by batch to the JSON file, and their picture
batch_throughput.png, and leaves the rest.
"""

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import finish, load, options, save, table
from matplotlib.figure import Figure
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR

from vae_fast.bench import machine
from vae_fast.bench.case import Work
from vae_fast.bench.cases_head import plain_logits
from vae_fast.bench.measure import in_turns, peak_memory
from vae_fast.errors import DivergedError
from vae_fast.files import write_json
from vae_fast.models import MLPVAE
from vae_fast.training import adam, evaluate, fit
from vae_fast.training.products import Products

LATENT = 20
BASE, BASE_LR = 100, 1e-3  # the thesis's batch and learning rate: where every rule begins
#: By how much the learning rate grows for a batch ``ratio`` times as large: Goyal et al. 2017 (linear, for SGD), Krizhevsky 2014 and, for
#: Adam, Malladi et al. 2022 (square root).
RULES: dict[str, Callable[[float], float]] = {"constant": lambda ratio: 1.0, "square root": lambda ratio: ratio**0.5, "linear": float}
ROOF = 2.2  # times the least loss: what comes out above it is marked, and the rest can be told apart
WARM_SHARE = 0.1  # of the steps: one epoch of ten
COLOURS = {"constant": "#8a8a8a", "square root": "#1f5fa8", "linear": "#d9772b"}
CONTENDERS = {"ours": "vae_fast", "eager": "plain PyTorch"}
STATE = {"ours": "#1f5fa8", "eager": "#8a8a8a"}
Cell = dict[str, Any]


def batches(quick: bool) -> tuple[int, ...]:
    """What is trained with."""
    return (100, 400) if quick else (100, 400, 1600, 6400)


def epochs(quick: bool) -> int:
    """How many, of every training."""
    return 5 if quick else 10


def cells(quick: bool) -> list[Cell]:
    """Every training: batch, rule, warm-up or not. At the base batch the rules are one."""
    return [
        {"batch": batch, "rule": rule, "warm_up": warm, "lr": BASE_LR * RULES[rule](batch / BASE)}
        for batch in batches(quick)
        for rule in (RULES if batch != BASE else ("constant",))
        for warm in (False, True)
    ]


def warm_up(optimizer: Optimizer, steps: int) -> LinearLR:
    """Raise the learning rate in equal steps over the first tenth of the training; it is moved after every step of the optimizer."""
    first = max(1, round(WARM_SHARE * steps))
    schedule = LinearLR(optimizer, start_factor=1.0 / first, total_iters=max(1, first - 1))
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return schedule


def trained(cell: Cell, train: Tensor, test: Tensor, n_epochs: int, seed: int) -> Cell:
    """The cell with what came of it: the mean loss of every epoch until the last, or until it was no number any more."""
    torch.manual_seed(seed)
    model = MLPVAE(LATENT, train.shape[1], generator=torch.Generator().manual_seed(seed))
    optimizer = adam(model, cell["lr"])
    steps = n_epochs * -(-len(train) // cell["batch"])
    if cell["warm_up"]:
        warm_up(optimizer, steps)
    losses: list[float] = []
    found: Cell = {"steps": steps, "losses": losses, "loss": None, "test_loss": None}
    try:
        fit(
            model,
            train,
            epochs=n_epochs,
            batch_size=cell["batch"],
            optimizer=optimizer,
            drop_last=False,  # every batch size sees every image in every epoch
            seed=seed,
            callbacks=[lambda history: losses.append(history[-1]["loss"])],
        )
        found |= {"loss": losses[-1], "test_loss": evaluate(model, test)["loss"]}
    except DivergedError:
        pass
    return cell | found


def study(args: argparse.Namespace) -> list[Cell]:
    """All cells; each is written as it is finished, and one that an interrupted run has finished is not trained again."""
    images = load(args.dataset)
    notes = args.out / "batch_size.unfinished.json"
    setting = {"dataset": args.dataset, "quick": args.quick, "seed": args.seed, "epochs": epochs(args.quick), "cells": cells(args.quick)}
    done: list[Cell] = []
    if notes.exists() and (old := json.loads(notes.read_text()))["setting"] == setting:
        done = old["done"]
        print(f"{notes}: {len(done)} of {len(setting['cells'])} are trained", flush=True)
    for cell in setting["cells"][len(done) :]:
        done.append(trained(cell, images.train, images.test, setting["epochs"], args.seed))
        write_json(notes, {"setting": setting, "done": done})
        print("  ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in done[-1].items() if k != "losses"), flush=True)
    return done


def draw_loss(path: Path, done: list[Cell]) -> None:
    """The loss of the last epoch against the batch, a line for each rule."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    roof = ROOF * min(c["loss"] for c in done if c["loss"] is not None)
    marks = {"^": [c for c in done if c["loss"] is not None and c["loss"] > roof], "x": [c for c in done if c["loss"] is None]}
    for i, rule in enumerate(RULES):
        for warm in (False, True):
            mine = [c for c in done if c["warm_up"] is warm and (c["rule"] == rule or c["batch"] == BASE)]
            how = {
                "color": COLOURS[rule],
                "ls": "-" if warm else "--",
                "marker": "o" if warm else "s",
                "mfc": COLOURS[rule] if warm else "white",
            }
            losses = [c["loss"] if c["loss"] is not None and c["loss"] <= roof else math.nan for c in mine]
            axes.plot([c["batch"] for c in mine], losses, ms=5, label=f"{rule}, warm-up" if warm else rule, **how)
            for mark, cells_out in marks.items():
                for c in (c for c in cells_out if c["rule"] == rule and c["warm_up"] is warm):
                    place = c["batch"] * (1.0 + 0.06 * (2 * i + warm - 2.5))  # side by side along the upper edge
                    face = COLOURS[rule] if warm else "white"
                    edge = axes.get_xaxis_transform()
                    axes.plot(place, 1.03, mark, transform=edge, clip_on=False, color=COLOURS[rule], mfc=face)
    for mark, label in (("^", f"above {roof:.0f}: see the table"), ("x", "diverged")):
        if marks[mark]:
            axes.plot([], [], mark, color="#222222", label=label)
    axes.set(xscale="log", xlabel="batch", ylabel=f"training loss of epoch {len(done[0]['losses'])}, nats per image")
    axes.set_xticks(sorted({c["batch"] for c in done}), [f"{b:,}" for b in sorted({c["batch"] for c in done})])
    axes.minorticks_off()
    axes.grid(color="#e6e6e6", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title="learning rate")
    save(figure, path)


# --- samples per second and memory ------------------------------------------------------------------------------------


def step_of(contender: str, images: Tensor, batch: int) -> Callable[[], None]:
    """A whole training step: gather a batch, loss, gradients, fused Adam; ours with its loss and its products, as ``fit`` takes it."""
    model = MLPVAE(LATENT, images.shape[1], generator=torch.Generator().manual_seed(0))
    optimizer = adam(model)
    n, at = len(images), 0
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))

    def plain(x: Tensor) -> Tensor:
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        mu, logvar = model.encoder(x)
        return plain_logits(x, model.decoder(mu + (0.5 * logvar).exp() * torch.randn_like(mu)), mu, logvar)

    loss = model.loss if contender == "ours" else plain

    def take() -> None:
        nonlocal at
        rows = order[torch.arange(at, at + batch) % n]  # a batch larger than the data meets some images twice
        at = (at + batch) % n
        optimizer.zero_grad()  # first, as fit does: the old gradients are gone before the new step takes its memory
        loss(images.index_select(0, rows)).backward()
        optimizer.step()

    def step() -> None:
        with Products(torch.device("cpu")) if contender == "ours" else contextlib.nullcontext():
            take()

    return step


def timed(images: Tensor, batch: int, seconds: float) -> list[dict[str, Any]]:
    """Both contenders in turns at one batch size: medians of samples per second, and the most bytes alive in a step."""
    works = {name: Work(step_of(name, images, batch), [()], None) for name in CONTENDERS}
    times = in_turns(works, "cpu", seconds=seconds)
    rows = []
    for name, work in works.items():
        middle, low, high = times[name].quantiles()
        rates = {"samples_per_second": batch / middle, "q20": batch / high, "q80": batch / low}
        rows.append({"name": name, "batch": batch, **rates, "peak_bytes": peak_memory(work, "cpu")})
    return rows


def add_times(args: argparse.Namespace) -> None:
    """Measure, and put what was found into the JSON file of an earlier run."""
    path = args.out / "batch_size.json"
    if not path.exists():
        sys.exit(f"error: {path}: not there: run without --time first")
    images, rows = load(args.dataset).train, []
    for batch in (64, 256) if args.quick else (100, 256, 1024, 4096, 16384, 65536):
        rows += timed(images, batch, 0.1 if args.quick else 8.0)
        for row in rows[-len(CONTENDERS) :]:
            print("  ".join(f"{k} {v:,.0f}" if not isinstance(v, str) else v for k, v in row.items()), flush=True)
    command = "python examples/batch_size.py --time" + " --quick" * args.quick
    throughput = {"command": command, "dataset": args.dataset, "machine": machine.facts("cpu"), "rows": rows}
    write_json(path, json.loads(path.read_text()) | {"throughput": throughput})
    draw_throughput(args.out / "batch_throughput.png", rows)
    print(f"wrote {args.out}: batch_throughput.png, batch_size.json")


def draw_throughput(path: Path, rows: list[dict[str, Any]]) -> None:
    """Samples per second against the batch, and how much more memory plain PyTorch takes: two lines of MiB would lie on one another."""
    figure = Figure(figsize=(5.6, 6.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for name, label in CONTENDERS.items():
        mine = [row for row in rows if row["name"] == name]
        sizes = [row["batch"] for row in mine]
        above.plot(sizes, [row["samples_per_second"] for row in mine], "o-", color=STATE[name], label=label)
        above.fill_between(sizes, [row["q20"] for row in mine], [row["q80"] for row in mine], color=STATE[name], alpha=0.2, lw=0)
    ours, plain = ({row["batch"]: row["peak_bytes"] for row in rows if row["name"] == name} for name in ("ours", "eager"))
    below.plot(sizes, [plain[b] / ours[b] for b in sizes], "o-", color=STATE["eager"])
    below.axhline(1.0, color=STATE["ours"])
    for b in sizes:
        below.annotate(
            f"{plain[b] / 2**20:,.0f} / {ours[b] / 2**20:,.0f}",
            (b, plain[b] / ours[b]),
            (0, 8 if b == sizes[-1] else -16),
            textcoords="offset points",
            ha="center",
        )
    below.text(sizes[0], 1.005, "as much as vae_fast", color=STATE["ours"], va="bottom")
    below.set(ylim=(0.85, 1.15), xlabel="batch", ylabel="most memory in a step: ratio")
    below.set_title("plain PyTorch / vae_fast, and both in MiB", loc="left", fontsize="medium")
    above.legend(frameon=False)
    above.set(ylim=(0, None), ylabel="images per second")
    for axes in (above, below):
        axes.set(xscale="log", xlim=(0.7 * sizes[0], 1.7 * sizes[-1]))
        axes.set_xticks(sizes, [f"{b:,}" for b in sizes])
        axes.minorticks_off()
        axes.grid(color="#e6e6e6", lw=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    above.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    save(figure, path)


# --- all of it --------------------------------------------------------------------------------------------------------


def main() -> None:
    """Train or take up, draw; or measure."""
    text = "only measure samples per second and memory, beside plain PyTorch's, and add them to the JSON file"
    args = options(__doc__, "mnist", lambda parser: parser.add_argument("--time", action="store_true", help=text))
    if args.time:
        add_times(args)
        return
    done = study(args)
    draw_loss(args.out / "batch_size.png", done)
    images = load(args.dataset)
    results: dict[str, Any] = {"dataset": args.dataset, "images": len(images.train), "epochs": epochs(args.quick), "cells": done}
    before = args.out / "batch_size.json"
    if before.exists() and "throughput" in (old := json.loads(before.read_text())):
        results["throughput"] = old["throughput"]  # measured on a quiet machine: kept
    finish(args, results, ("batch_size.png",))
    (args.out / "batch_size.unfinished.json").unlink()


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    done = {(c["batch"], c["rule"], c["warm_up"]): c for c in r["cells"]}
    sizes = sorted({c["batch"] for c in r["cells"]})
    rows = []
    for batch in sizes:
        mine = [done.get((batch, rule, warm), done.get((batch, "constant", warm))) for rule in RULES for warm in (False, True)]
        rows.append([f"{batch:,}", f"{mine[0]['steps']:,}", *(said(c) for c in mine)])
    head = ["batch", "steps", *(f"{rule}{', warm-up' * warm}" for rule in RULES for warm in (False, True))]
    base = done[BASE, "constant", False]["loss"]
    best = []
    for batch in sizes[1:]:
        finite = [c for c in r["cells"] if c["batch"] == batch and c["loss"] is not None]
        least = min(finite, key=lambda c: c["loss"])
        against = f"{least['loss'] - base:+.2f}".replace("-", "−")
        best.append(f"{batch:,}: {least['rule']}{' with warm-up' * least['warm_up']}, {against} nats")
    lost = sum(c["loss"] is None for c in r["cells"])
    failed = f" {lost} of {len(r['cells'])} trainings diverged: their loss was no finite number any more." if lost else ""
    return f"""\
## Batch size: `{r["command"]}`

What a larger batch costs when the number of epochs stays: `MLPVAE` with {LATENT} latent dimensions on {r["images"]:,} images of
{r["dataset"]}, {r["epochs"]} epochs of Adam, the learning rate {BASE_LR:g} at a batch of {BASE} and from there constant, grown with the
square root of the batch, or in proportion to it; with warm-up it rises in equal steps over the first {WARM_SHARE:.0%} of the steps.
Training loss of the last epoch, in nats per image:

{table(head, rows)}

The best of each batch, against {base:.2f} at {BASE}: {"; ".join(best)}.{failed}

![Training loss against batch](pictures/batch_size.png)
{throughput(r)}"""


def said(cell: Cell) -> str:
    """A cell of the table."""
    return f"{cell['loss']:.2f}" if cell["loss"] is not None else f"diverged in epoch {len(cell['losses']) + 1}"


def throughput(r: dict[str, Any]) -> str:
    """The table of samples per second and memory, or nothing where they have not been measured."""
    if "throughput" not in r:
        return ""
    t = r["throughput"]
    found = {(row["batch"], row["name"]): row for row in t["rows"]}
    rows = []
    for batch in sorted({batch for batch, _ in found}):
        ours, plain = (found[batch, name] for name in CONTENDERS)
        rates = [f"{row['samples_per_second']:,.0f}" for row in (ours, plain)]
        memory = [f"{row['peak_bytes'] / 2**20:,.0f}" for row in (ours, plain)]
        ratio = f"{ours['samples_per_second'] / plain['samples_per_second']:.2f}"
        rows.append([f"{batch:,}", *rates, ratio, *memory])
    head = ["batch", *(f"{label}, images/s" for label in CONTENDERS.values()), "ratio", *(f"{label}, MiB" for label in CONTENDERS.values())]
    where = t["machine"]
    return f"""
A whole training step by batch (gather, loss, gradients, fused Adam) in plain PyTorch and as `fit` takes it (the ELBO by
vae_fast's kernels, matrix products through oneDNN), in turns, medians; and the most memory that tensors take at once during a step,
beyond data, weights and Adam's moments (`{t["command"]}`, {where["processor"]},
{where["threads"]} threads, torch {where["torch"]}, commit {where["commit"]}):

{table(head, rows)}

![Samples per second and memory against batch](pictures/batch_throughput.png)
"""


if __name__ == "__main__":
    main()

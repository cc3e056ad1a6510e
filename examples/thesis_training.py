"""The thesis's section 5.1: the variational autoencoder trained on MNIST and on Frey Faces with latent spaces of 2 to 50 dimensions.

    python examples/thesis_training.py [--quick | --full] [--out DIR] [--runs DIR] [--models NAME ... | --time]

Writes thesis_loss.png, thesis_reconstructions.png and thesis_training.json, and a page of each model for a browser (to docs/explore; with
--out to DIR/pages). The full setting takes an hour or two on one core; stopped, it goes on where it was. --models trains those alone: the
rows of the others stay as an earlier run's JSON file has them. --time, on a machine that does nothing else, adds seconds per epoch to the
JSON file and leaves the rest.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from _common import command, commit, draw_sheet, finish, load, save, table
from _thesis import (
    GRID,
    SOURCE,
    Setting,
    Trained,
    images_of,
    paged,
    settings,
    shown_epoch,
    start_loss,
    thesis_options,
    trained,
    write_pages,
)
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from vae_fast import data
from vae_fast.bench import machine
from vae_fast.bench.training import Trainer
from vae_fast.files import write_json
from vae_fast.models import MLPVAE
from vae_fast.training import Record, adam, evaluate, evaluate_log_prob

#: How near the thesis's loss a model is expected to come, in nats per image.
TOLERANCE = {"mnist": 1.0, "frey": 1.5}
#: Seconds that the thesis prints for its last epoch, by latent dimension, of MNIST.
SOURCE_SECONDS = {10: 17.868237, 20: 26.767085, 50: 16.530946}
#: Epochs of Frey Faces that the page compares with the thesis.
SHOWN = ("100", "1000")
COLOURS = {2: "#1f5fa8", 5: "#8a8a8a", 10: "#d9772b", 20: "#3a8f4d", 50: "#8d4a9e"}
DARK = {2: "#0b2c52", 5: "#444444", 10: "#7a3d0e", 20: "#173f20", 50: "#4a2354"}


def numbers(t: Trained, samples: int) -> dict[str, Any]:
    """A model's row: the training's last epoch, the thesis's epochs, and what test images say that it has not seen."""
    s, last = t.setting, t.history[-1]
    source = SOURCE.get(s.name, {}) if s.dataset == s.group else {}
    at = source or SOURCE.get(s.name.split("-batch")[0], {})
    row: dict[str, Any] = {"name": s.name, "dataset": s.dataset, "latent": s.latent, "epochs": len(t.history), "hidden": s.hidden}
    row |= {
        "batch": s.batch,
        "seed": t.made["seed"],
        "extra": s.extra,
        "images": len(images_of(s, t.found)[0]),
        "whole": s.whole,
        "loss": last["loss"],
        "kl": last["kl"],
    }
    row |= {"at": {"0": start_loss(s, t.made["seed"])} | {str(e): t.history[e - 1]["loss"] for e in at if 0 < e <= len(t.history)}}
    row |= {"curve": curve(s, t.history)}
    row |= {"source_at": {str(e): loss for e, loss in source.items()}, "source_loss": source.get(s.epochs)}
    if not s.whole:
        test = evaluate(t.model, t.found.test)
        row |= {"valid_loss": last["valid_loss"], "test_images": len(t.found.test), "test_loss": test["loss"], "test_kl": test["kl"]}
        row |= {"least_valid_loss": min(r["valid_loss"] for r in t.history)}
        row |= {"test_log_prob": evaluate_log_prob(t.model, t.found.test, samples)}
    return row | {"made": t.made}


def smoothed(values: list[float], epoch: int, share: float) -> float:
    """The median of the epochs that are no further from this one, counted from 1, than a share of it below 1."""
    side = int(share * epoch)
    return statistics.median(values[epoch - 1 - side : epoch + side])


def curve(setting: Setting, history: list[Record]) -> dict[str, list[float]]:
    """What is drawn of a history: about 150 epochs, closer together at the start, and the running medians there.

    An epoch of faces is one or two steps with their own noise; one of digits is hundreds, and its median is the loss itself.
    """
    share = 0.0 if setting.group == "mnist" else 0.1
    epochs = sorted({round(len(history) ** (i / 199)) for i in range(200)})
    found: dict[str, list[float]] = {"epoch": list(map(float, epochs))}
    for key in ("loss", "valid_loss"):
        if key in history[0]:
            values = [r[key] for r in history]
            found |= {key: [values[e - 1] for e in epochs], f"{key}_median": [smoothed(values, e, share) for e in epochs]}
    return found


def points(at: dict[str, float] | dict[int, float], start: bool) -> tuple[list[int], list[float]]:
    """The epochs and the losses of epoch 0, or of those after it."""
    chosen = {int(e): loss for e, loss in at.items() if (int(e) == 0) == start}
    return list(chosen), list(chosen.values())


def draw_loss(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Loss by epoch, with the thesis's printed figures as points; above a break in the scale, the untrained models."""
    figure = Figure(figsize=(5.2, 11.0))
    for top, group, title in ((0.97, "mnist", "MNIST"), (0.45, "frey", "Frey Faces")):
        chosen = sorted((m for m in rows if m["name"].startswith(group) and not m["extra"]), key=lambda m: (m["latent"], m["name"]))
        grid = figure.add_gridspec(2, 1, height_ratios=(1, 4), top=top, bottom=top - 0.35, left=0.15, right=0.97, hspace=0.07)
        above, below = grid.subplots(sharex=True)
        last = max(m["epochs"] for m in chosen)
        first = 1.0 if group == "mnist" else max(1.0, last / 250)  # the scale is logarithmic from here on
        printed = {m["name"]: {} if args.quick else SOURCE.get(m["name"], {}) for m in chosen}
        for i, m in enumerate(chosen):
            colour = COLOURS[m["latent"]]
            draw_curve(below, m, group)
            below.plot(*points(printed[m["name"]], False), "o", ms=7.5, mfc="none", mec=colour, zorder=6)
            above.plot(*points(printed[m["name"]], True), "o", ms=7.5, mfc="none", mec=colour)
            above.plot(first * 0.12 * (i + 1), m["at"]["0"], "o", ms=5.0, color=colour)  # side by side
        for ax in (above, below):
            ax.grid(color="#e6e6e6", lw=0.7)
            ax.tick_params(labelsize=11)
            ax.spines[["top", "right"]].set_visible(False)
        above.margins(y=0.25)
        # The first epochs would leave no room for what sets the models apart.
        begin = 2.0 if group == "mnist" else first
        lines = [(m["curve"]["epoch"], m["curve"]["loss_median"]) for m in chosen]
        shown = [y for line in lines for e, y in zip(*line, strict=True) if e >= begin]
        room = 0.06 * (max(shown) - min(shown))
        below.set_ylim(min(shown) - room, max(shown) + room)
        below.set_xscale("symlog", linthresh=first, linscale=0.35)
        below.set_xlim(-0.08 * first, 1.15 * last)
        below.set_xticks([0.0, *(e for e in (1.0, 10.0, 50.0, 100.0, 1000.0, 5000.0) if first <= e <= last)])
        below.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        below.xaxis.set_minor_locator(NullLocator())
        above.spines["bottom"].set_visible(False)
        above.tick_params(bottom=False)
        below.set_xlabel("epoch (0: untrained)", fontsize=12)
        below.set_ylabel("loss = −ELBO, nats per image", fontsize=12)
        above.set_title(f"{title}" + (" (digits in its place)" if args.quick else ""), loc="left", fontsize=12)
        for latent in sorted({m["latent"] for m in chosen}):
            below.plot([], [], color=COLOURS[latent], lw=1.8, label=f"latent {latent}")
        if any("valid_loss_median" in m["curve"] for m in chosen):
            name, dashes = ("validation", ":") if group == "mnist" else ("validation (held out)", "--")
            below.plot([], [], color="#222222", lw=1.6, ls=dashes, label=name)
        if not args.quick:
            below.plot([], [], "o", ms=7.5, mfc="none", mec="#222222", ls="", label="the thesis's figures")
        below.legend(frameon=False, fontsize=11, loc="upper center", bbox_to_anchor=(0.45, -0.16), ncols=2)
    save(figure, args.out / "thesis_loss.png", dpi=150)


def draw_curve(axes: Any, row: dict[str, Any], group: str) -> None:
    """One model's loss and validation: of faces the running medians, the loss's noise faint behind them.

    Of a model that leaves frames out the validation alone.
    """
    colour = COLOURS[row["latent"]]
    found = row["curve"]
    if group == "frey" and row["whole"]:
        axes.plot(found["epoch"], found["loss"], color=colour, alpha=0.25, lw=0.7)
    if group == "mnist" or row["whole"]:
        axes.plot(found["epoch"], found["loss_median"], color=colour, lw=1.8)
    if "valid_loss" in found:
        style = {"color": colour, "lw": 1.2, "ls": ":"} if group == "mnist" else {"color": DARK[row["latent"]], "lw": 2.2, "ls": "--"}
        axes.plot(found["epoch"], found["valid_loss_median"], zorder=5, **style)


def draw_films(args: argparse.Namespace, models: list[Trained]) -> None:
    """One image and its reconstruction through the epochs, a row for each model."""
    groups = {group: [t for t in models if t.setting.group == group] for group in ("mnist", "frey")}
    shots = {group: [e for e in range(max(t.setting.epochs for t in films) + 1) if shown_epoch(e)] for group, films in groups.items()}
    heights = []  # of the pixels, in inches, for a width of 8
    for group, films in groups.items():
        height, width = films[0].found.image_shape
        heights.append(8.0 * len(films) * (height + 1) / ((len(shots[group]) + 1) * (width + 1)))
    figure = Figure(figsize=(9.0, sum(heights) + 1.1), layout="constrained")
    for axes, (group, films) in zip(figure.subplots(2, 1, height_ratios=heights), groups.items(), strict=True):
        films.sort(key=lambda t: t.setting.latent)
        epochs = shots[group]
        blank = torch.ones_like(films[0].film[-1])
        rows = [torch.stack([t.film[-1], *(t.film.get(e, blank) for e in epochs)]) for t in films]
        labels = [f"latent {t.setting.latent}" for t in films]
        shape = films[0].found.image_shape
        draw_sheet(axes, rows, shape, labels)
        names = ["image", *(f"{e:,}" for e in epochs)]
        axes.set_xticks([i * (shape[1] + 1) + 0.5 * shape[1] for i in range(len(names))], names)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
    figure.supxlabel("after so many epochs", fontsize="medium")
    save(figure, args.out / "thesis_reconstructions.png")


# --- seconds per epoch ------------------------------------------------------------------------------------------------


class Timed(Trainer):
    """:class:`vae_fast.bench.training.Trainer` of a model of any size; ``"eager"`` is the same model in plain PyTorch."""

    def __init__(self, contender: str, images: Tensor, setting: Setting) -> None:
        """The same weights and batches for both."""
        super().__init__(contender, "cpu", images)
        start = torch.Generator().manual_seed(0)
        self.batch = setting.batch
        self.model = MLPVAE(setting.latent, images.shape[1], setting.hidden, generator=start)
        self.optimizer = adam(self.model)
        self.loss = self.model.loss if contender == "ours" else self._plain

    def steps(self, n: int) -> float:
        """So many steps with batches of the model's own size; the seconds they took."""
        while len(self.batches) < n:
            order = torch.randperm(len(self.images), generator=self.shuffle)
            self.batches += [rows for rows in order.split(self.batch) if len(rows) == self.batch]
        return super().steps(n)


def timed(setting: Setting, found: data.Dataset, quick: bool) -> dict[str, Any]:
    """Seconds per epoch, the two in turns."""
    images = images_of(setting, found)[0]
    epoch = len(images) // setting.batch
    rounds, steps = (3, 5) if quick else (10, 5500 // setting.batch)
    trainers = {name: Timed(name, images, setting) for name in ("ours", "eager")}
    taken: dict[str, list[float]] = {name: [] for name in trainers}
    for trainer in trainers.values():
        trainer.steps(steps)
    for turn in range(rounds):
        for name in list(trainers)[:: 1 if turn % 2 == 0 else -1]:
            taken[name].append(trainers[name].steps(steps) / steps * epoch)
    seconds = {name: statistics.median(values) for name, values in taken.items()}
    ratio = statistics.median(plain / ours for ours, plain in zip(taken["ours"], taken["eager"], strict=True))
    return {"name": setting.name, "steps_per_epoch": epoch, "ours_s": seconds["ours"], "plain_s": seconds["eager"], "ratio": ratio}


def add_times(args: argparse.Namespace) -> None:
    """Measure, and put what was found into the JSON file of an earlier run."""
    path = args.out / "thesis_training.json"
    if not path.exists():
        sys.exit(f"error: {path}: not there: run without --time first")
    rows = []
    for s in settings(args.quick).values():
        if s.name in SOURCE:
            rows.append(timed(s, load(s.dataset), args.quick))
            print("  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    command = "python examples/thesis_training.py --time" + " --quick" * args.quick
    write_json(path, json.loads(path.read_text()) | {"time": {"command": command, "machine": machine.facts("cpu"), "rows": rows}})
    print(f"wrote {path}")


def more_options(parser: argparse.ArgumentParser) -> None:
    """What is this script's own."""
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--models", nargs="+", metavar="NAME", help="only these; the others' rows stay as an earlier run's JSON file has them"
    )
    text = "only measure seconds per epoch, beside plain PyTorch's, and add them to the JSON file"
    only.add_argument("--time", action="store_true", help=text)


def kept_rows(args: argparse.Namespace, path: Path) -> dict[str, dict[str, Any]]:
    """The rows of an earlier run of the models that are not to be trained, by name.

    Raises:
        SystemExit: in one line, if a model is not there to be trained, or an earlier row not there to be kept.
    """
    known = settings(args.quick)
    for name in args.models:
        if name not in known:
            sys.exit(f"error: --models {name}: expected some of {', '.join(known)}")
    rows = {m["name"]: m for m in json.loads(path.read_text())["models"]} if path.exists() else {}
    for name in known.keys() - set(args.models):
        if name not in rows:
            sys.exit(f"error: {path}: has no row of {name}: run without --models first")
    return {name: m for name, m in rows.items() if name not in args.models}


def main() -> None:
    """Train or take up, evaluate, draw."""
    args = thesis_options(__doc__, more_options)
    if args.time:
        add_times(args)
        return
    path = args.out / "thesis_training.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    rows = kept_rows(args, path) if args.models else {}
    samples = 10 if args.quick else 100
    # All are trained before any is evaluated; one at a time is kept in memory.
    models = [trained(args, name) for name in args.models or settings(args.quick)]
    for t in models:
        row = rows[t.setting.name] = numbers(t, samples)
        print("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if not isinstance(v, dict)))
    ordered = [rows[name] for name in settings(args.quick)]
    draw_loss(args, ordered)
    write_pages(args, models)
    floors = {t.setting.name: data.entropy_floor(images_of(t.setting, t.found)[0]) for t in models}
    if args.models:  # the film of a model that is not trained is not there: its picture stays
        added = {"command": command(args), "commit": commit(), "models": args.models}
        write_json(path, before | {"models": ordered, "floors": before["floors"] | floors, "added": added})
        print(f"wrote {args.out}: thesis_loss.png, {path.name}")
        return
    draw_films(args, [t for t in models if t.setting.name in SOURCE])
    results: dict[str, Any] = {"quick": args.quick, "samples": samples, "floors": floors, "models": ordered}
    if "time" in before:
        results["time"] = before["time"]  # measured on a quiet machine: kept
    finish(args, results, ("thesis_loss.png", "thesis_reconstructions.png"))


NAMES = {"mnist": "MNIST", "frey": "Frey Faces", "digits": "digits"}


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    times = {row["name"]: row for row in r.get("time", {}).get("rows", ())}
    ordered = sorted(r["models"], key=lambda m: (m["name"].startswith("frey"), not m["whole"], m["latent"]))
    body = [line(m) for m in ordered if not m["extra"]]
    head = [
        "images",
        "latent",
        "batch",
        "epochs",
        "loss",
        "the thesis's",
        "difference",
        "KL",
        "validation loss",
        "test loss",
        "test log p(x)",
    ]
    compared = [m for m in r["models"] if m["source_loss"] is not None]
    worse = [m for m in compared if m["loss"] - m["source_loss"] > TOLERANCE[m["dataset"]]]
    near = f"within {TOLERANCE['mnist']:g} nat (MNIST) or {TOLERANCE['frey']:g} nats (Frey Faces) of the thesis's or below it"
    said = f"Every loss is {near}." if not worse else f"Not {near}: {', '.join(m['name'] for m in worse)}."
    again = [m for m in r["models"] if "seed-" in m["name"]]
    first = next(m for m in r["models"] if again and m["name"] == again[0]["name"].split("-seed")[0])
    seeds = ", ".join(f"{m['loss']:.2f}" for m in (first, *again))
    widest = ""
    if compared:
        off = max(compared, key=lambda m: m["loss"] - m["source_loss"])
        widest = f"Furthest above the thesis is latent {off['latent']} of {NAMES[off['dataset']]}."
        if off["name"] == "mnist-20":
            took = {latent: f"{seconds:.1f}" for latent, seconds in SOURCE_SECONDS.items()}
            widest += f""" The thesis's own run with 20 took {took[20]} s in its last epoch, those with 10 and 50 took {took[10]} and
{took[50]}, and its loss falls below both from the tenth epoch on: it may have been made in another way than its section says."""
    held = [m for m in r["models"] if m["name"].endswith("held-out")]
    least = " and ".join(f"{m['least_valid_loss']:.2f} (latent {m['latent']})" for m in held)
    faces = next(m for m in r["models"] if m["name"] == "frey-2")
    small = next(m for m in r["models"] if m["name"] == "frey-2-batch-100")
    of_faces = "; ".join(
        f"epoch {int(e):,} is {loss:.2f} (the thesis {faces['source_at'][e]:.2f})" for e, loss in faces["at"].items() if e in SHOWN
    )
    small_at = " and ".join(f"{loss:.2f}" for e, loss in small["at"].items() if e in SHOWN)
    all_frames, some_frames = (f"{r['floors'][m['name']]:.2f} (of {m['images']:,})" for m in (faces, held[-1]))
    floors = f"{NAMES[first['dataset']]} {r['floors'][first['name']]:.2f}; {NAMES[faces['dataset']]} {all_frames} and {some_frames}"
    return f"""\
## The thesis: training by latent dimension: `{r["command"]}`

Section 5.1 of the thesis: `MLPVAE`, {first["hidden"]} hidden units, Adam at 0.001, Bernoulli likelihood of grey values.
Loss: −ELBO in nats per image, the mean over the last epoch, as the thesis prints it. Test log p(x): importance-weighted,
{r["samples"]} samples per image, every test image.
No model can come below the entropy of the grey values: {floors}.

{table(head, body)}

{said} Network, initial weights' distributions, split, batches, optimiser and loss are those of the thesis's listing; its random numbers
and TensorFlow's order of operations are not to be had. How much the random numbers do: latent {first["latent"]} from
{1 + len(again)} seeds ends at {seeds}. {widest}

Of the {faces["images"]:,} frames the thesis does not say which it trained on: here all, and the rows with a test loss leave a tenth for
validation and a tenth for testing. It gives the batches of its two runs as 1,000 and 5,000, the numbers of epochs, and the second is more
than there are frames. With batches of {faces["batch"]:,} the loss of latent {faces["latent"]} at {of_faces}; with batches of
{small["batch"]}, {small["images"] // small["batch"]} steps an epoch in place of {faces["images"] // faces["batch"]}, it is {small_at}
there. The larger batch is the one it names and ends nearer to its figures, so both runs have it. Its run with 20 dimensions prints at
epochs 100 and 1,000 the very figures of its run with 2. The least validation loss on the way was {least}; the last one is in the table.

{untrained_losses(r)}{again_trained(r)}

![Loss by epoch](pictures/thesis_loss.png)

![An image and its reconstruction through the epochs](pictures/thesis_reconstructions.png)

{pages(r, ordered)}
{timing(r, times)}"""


def untrained_losses(r: dict[str, Any]) -> str:
    """What the page says of epoch 0, which the thesis prints for three of its models."""
    rows = sorted((m for m in r["models"] if m["name"] in SOURCE and 0 in SOURCE[m["name"]]), key=lambda m: m["latent"])
    if r["quick"] or not rows:
        return ""
    ours = ", ".join(f"{m['at']['0']:.2f}" for m in rows)
    source = ", ".join(f"{SOURCE[m['name']][0]:.2f}" for m in rows)
    latent = ", ".join(str(m["latent"]) for m in rows)
    return f"""Epoch 0 is the untrained model, above the break in the picture: latent {latent} begin at {ours}, in the thesis at {source}
(other seeds: the listings below)."""


def again_trained(r: dict[str, Any]) -> str:
    """What the page says where some rows are of a later run."""
    if "added" not in r:
        return ""
    return f" Of a later run (`{r['added']['command']}`): {', '.join(r['added']['models'])}."


def pages(r: dict[str, Any], models: list[dict[str, Any]]) -> str:
    """A link to each model's page, and the command that makes one with the network in it."""
    links = [f"[{m['name']}](../docs/explore/{m['name']}.html)" for m in models if m["name"] in paged(r["quick"])]
    return f"""\
Each model's latent plane is a page to move in, on a phone too (two sliders, or a finger on the plane: the thesis's figure 38), in a browser
that opens the file from a copy of the repository: {", ".join(links)}. A page blends between
{GRID} x {GRID} images that were decoded beforehand, along the two dimensions that tell test images apart the most; the others stay where
one test image is encoded. `vae-fast explore runs/thesis/NAME --page NAME.html` makes one with the network itself, which is larger.
"""


def line(m: dict[str, Any]) -> list[object]:
    """A model's row of the table."""
    source = ["", ""] if m["source_loss"] is None else [f"{m['source_loss']:.2f}", f"{m['loss'] - m['source_loss']:+.2f}".replace("-", "−")]
    tested = (
        ["", "", ""] if m["whole"] else [f"{m['valid_loss']:.2f}", f"{m['test_loss']:.2f}", f"{m['test_log_prob']:.2f}".replace("-", "−")]
    )
    name = f"{NAMES[m['dataset']]}, {m['images']:,}"
    return [name, m["latent"], f"{m['batch']:,}", f"{m['epochs']:,}", f"{m['loss']:.2f}", *source, f"{m['kl']:.2f}", *tested]


def timing(r: dict[str, Any], times: dict[str, dict[str, Any]]) -> str:
    """The table of seconds per epoch, or nothing where they have not been measured."""
    if not times:
        return ""
    cells = [
        [name, row["steps_per_epoch"], f"{row['ours_s']:.3g}", f"{row['plain_s']:.3g}", f"{row['ratio']:.2f}"]
        for name, row in times.items()
    ]
    where = r["time"]["machine"]
    head = ["model", "steps per epoch", "vae_fast, s", "plain PyTorch, s", "ratio"]
    return f"""
Seconds per epoch, the same network and optimiser, in plain PyTorch and as `fit` runs them (the ELBO by vae_fast's kernels, matrix products
through oneDNN), in turns, medians
(`{r["time"]["command"]}`, {where["processor"]}, {where["threads"]} threads, torch {where["torch"]}, commit {where["commit"]}):

{table(head, cells)}
"""


if __name__ == "__main__":
    main()

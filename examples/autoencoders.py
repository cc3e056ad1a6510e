"""Autoencoders against PCA: the linear one finds the same subspace, the deep ones reconstruct better from as few numbers.

    python examples/autoencoders.py [--quick] [--out DIR] [--dataset mnist] [--all-images [EPOCHS]] [--runs DIR]

Writes linear_autoencoder.png, autoencoders.png and autoencoders.json. --all-images trains on every training image instead, two of the
convolutional autoencoders alone, and adds what it finds to the JSON file; stopped, it goes on where it was.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from _autoencoder import PCA, convolutional, largest_angle, linear, mlp
from _common import PICTURES, Reader, command, commit, draw_sheet, finish, learn, load, options, save, table, unit
from _thesis import ROOT, train_labels
from matplotlib.figure import Figure
from torch import Tensor, nn

from vae_fast.errors import VaeFastError
from vae_fast.files import write_json
from vae_fast.training import Record, fit, say

DIMS = (2, 4, 8, 16, 32)
LINEAR_DIMS = (2, 8, 32)
#: Dimensions of --all-images: the two of which the deck's convolutional autoencoder loses least and nothing.
ALL_DIMS = (4, 8)
#: The first 36 test digits as printed beside the deck's reconstructions, and those reconstructions, all as transcribed from its pages: at
#: d = 16 and 32 the transcription reads the original 3 as an 8.
ORIGINALS = dict.fromkeys((2, 4, 8), "721041495906901597349665407401313472")
ORIGINALS |= dict.fromkeys((16, 32), "721041495906901597849665407401313472")
DECK = {
    2: {"pca": "931091998908901899899898909901818998", "cnn": "721091998906901597599665907901515972"},
    4: {"pca": "921091990900901399399065909901313090", "cnn": "721041499906901597349665407401313072"},
    8: {"pca": "731041990700901097349605407401313470", "cnn": "721041495906901597349665407401313472"},
    16: {"pca": "721091496906901597849665407401313472", "cnn": "721041495906901597849665407401313472"},
    32: {"pca": "721041495906901597849665407401313472", "cnn": "721041495906901597849665407401313472"},
}


def linear_against_pca(args: Any, x: Tensor, shape: tuple[int, int]) -> list[dict[str, float]]:
    """Principal angles between the two subspaces, and the error each leaves."""
    found, centred = [], x - x.mean(0)
    for dim in LINEAR_DIMS:
        u, pca = linear(x, dim, 300 if args.quick else 3000), PCA(x, dim)
        angle = largest_angle(u, pca.axes)
        error = (centred - centred @ u.float() @ u.T.float()).square().sum(1).mean().item()
        found.append({"dim": dim, "largest_angle_rad": angle, "error_linear": error, "error_pca": pca.error(x)})
        print(f"linear d = {dim:>2}: largest principal angle {angle:.1e} rad, error {error:.3f}, PCA {pca.error(x):.3f}")
        if dim == 8:
            axes = pca.axes.T
            rows = [axes, u.T.float(), (u @ torch.linalg.lstsq(u, pca.axes.double()).solution).T.float()]
            figure = Figure(figsize=(9.0, 3.9), layout="constrained")
            scaled = [0.5 + row / (2.2 * row.abs().max(1, keepdim=True).values) for row in rows]
            labels = ("PCA: axes", "columns of U", "PCA's axes, as\ncombinations of\nthose columns")
            draw_sheet(figure.add_subplot(), scaled, shape, labels, "Two bases of one subspace (d = 8)")
            save(figure, args.out / "linear_autoencoder.png")
    return found


def deep_against_pca(args: Any, x: Tensor, test: Tensor, labels: Tensor, shape: tuple[int, int]) -> dict[str, Any]:
    """The error, and how many digits a classifier still reads, for each number of dimensions."""
    held = len(test) // 2
    reader = Reader(test[:held], labels[:held]) if not args.quick else Reader(test, labels)
    judged, truth = test[held:], labels[held:]
    epochs = {"mlp": 20 if args.quick else 15, "cnn": 8}
    fits, shown, dims = [], [test[:12]], DIMS[:3] if args.quick else DIMS
    for dim in dims:
        for kind in ("pca", "mlp", "cnn"):
            begin = time.perf_counter()
            if kind == "pca":
                model = PCA(x, dim)
            else:
                model = mlp(shape, dim) if kind == "mlp" else convolutional(shape, dim)
                learn(model, x, epochs[kind])
            with torch.no_grad():
                accuracy, right = reader.accuracy(model(judged), truth), right_of_36(reader, model(test[:36]), labels)
                if kind != "mlp":
                    shown.append(model(test[:12]))
            fits.append({"dim": dim, "model": kind, "test_error": model.error(test), "accuracy": accuracy, "right_of_36": right})
            seconds = time.perf_counter() - begin
            print(f"d = {dim:>2} {kind}: error {fits[-1]['test_error']:6.2f}, read right {accuracy:.3f}, {right}/36  {seconds:.1f} s")
    names = ["original"] + [f"{name}, d = {dim}" for dim in dims for name in ("PCA", "CNN")]
    figure = Figure(figsize=(8.6, 7.4), layout="constrained")
    draw_sheet(figure.add_subplot(), shown, shape, names, "Test digits and their reconstructions from d numbers")
    save(figure, args.out / "autoencoders.png")
    return {"epochs": epochs, "originals_read_right": reader.accuracy(judged, truth), "fits": fits}


def learn_all(args: argparse.Namespace, model: nn.Module, x: Tensor, dim: int, epochs: int) -> list[Record]:
    """As :func:`_common.learn`, the step falling to zero along a cosine, from where an earlier call was stopped."""
    file: Path = args.runs / f"cnn-{dim}-epochs-{epochs}.pt"
    steps = epochs * math.ceil(len(x) / 100)
    try:
        return fit(
            model,
            x,
            epochs=epochs,
            lr=2e-3,
            schedule=lambda step: 0.5 * (1.0 + math.cos(math.pi * step / steps)),
            drop_last=False,
            seed=args.seed,
            checkpoint=file,
            resume=file.exists(),
            callbacks=[lambda history: say(f"d = {dim}: epoch {len(history)}/{epochs}  loss {history[-1]['loss']:.3f}")],
        )
    except (VaeFastError, RuntimeError) as error:  # RuntimeError: weights of another shape
        sys.exit(f"error: {str(error).splitlines()[0]}; delete {file} to begin this model anew")


def add_all_images(args: argparse.Namespace) -> None:
    """Train on every training image, read with a classifier of them, and put what was found into the JSON file of an earlier run."""
    path = args.out / "autoencoders.json"
    if not path.exists():
        sys.exit(f"error: {path}: not there: run without --all-images first")
    found, epochs = load(args.dataset), args.all_images
    x, test, labels = unit(torch.cat((found.train, found.valid))), unit(found.test), found.test_labels
    models = {}
    for dim in ALL_DIMS:
        torch.manual_seed(args.seed + dim)
        models[dim] = convolutional(found.image_shape, dim).to(memory_format=torch.channels_last)
        learn_all(args, models[dim], x, dim, epochs)
    reader = Reader(unit(found.train), train_labels(args.dataset))
    results: dict[str, Any] = {"command": command(args), "commit": commit(), "train_images": len(x), "epochs": epochs}
    results |= {"originals_read_right": reader.accuracy(test, labels), "originals_of_36": right_of_36(reader, test, labels), "fits": []}
    for dim in ALL_DIMS:
        for kind, model in (("pca", PCA(x, dim)), ("cnn", models[dim].eval())):
            with torch.no_grad():
                made = torch.cat([model(part) for part in test.split(1000)])
            row = {"dim": dim, "model": kind, "test_error": model.error(test), "accuracy": reader.accuracy(made, labels)}
            results["fits"].append(row | {"right_of_36": right_of_36(reader, made, labels)})
            print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in results["fits"][-1].items()))
    write_json(path, json.loads(path.read_text()) | {"all_images": results})
    print(f"wrote {path}")


def right_of_36(reader: Reader, images: Tensor, labels: Tensor) -> int:
    """How many of the first 36 are read as their label."""
    return int((reader.read(images[:36]) == labels[:36]).sum())


def more_options(parser: argparse.ArgumentParser) -> None:
    """What is this script's own."""
    text = "train on all training images for so many epochs (default: 15), d = 4 and 8; the rest of an earlier run's JSON file stays"
    parser.add_argument("--all-images", type=int, nargs="?", const=15, metavar="EPOCHS", help=text)
    text = "where --all-images keeps its models and goes on from (default: runs/autoencoders; with another --out OUT/autoencoders)"
    parser.add_argument("--runs", type=Path, metavar="DIR", help=text)


def main() -> None:
    """Train, print, draw."""
    args = options(__doc__, "mnist", more_options)
    if args.runs is None:
        args.runs = (ROOT / "runs" if args.out == PICTURES else args.out) / "autoencoders"
    if args.all_images is not None:
        add_all_images(args)
        return
    found = load(args.dataset)
    n = min(len(found.train), 20_000)
    x, test = unit(found.train[:n]), unit(found.test)
    results: dict[str, Any] = {"dataset": args.dataset, "train_images": n, "test_images": len(test)}
    results["variance"] = (test - x.mean(0)).square().sum(1).mean().item()
    results["linear"] = linear_against_pca(args, x, found.image_shape)
    results["deep"] = deep_against_pca(args, x, test, found.test_labels, found.image_shape)
    finish(args, results, ("linear_autoencoder.png", "autoencoders.png"))


def right_in_deck(dim: int, kind: str) -> str:
    """How many of the 36 reconstructions are read as their originals are."""
    return str(sum(a == b for a, b in zip(DECK[dim][kind], ORIGINALS[dim], strict=True)))


def all_images(r: dict[str, Any]) -> str:
    """What the page says of --all-images: whether the deck's counts are reached."""
    if "all_images" not in r:
        return ""
    found, rows, said = r["all_images"], [], []
    for f in found["fits"]:
        deck = right_in_deck(f["dim"], f["model"])
        rows.append([f["dim"], f["model"].upper(), f"{f['test_error']:.2f}", f"{f['accuracy']:.1%}", f"{f['right_of_36']} ({deck})"])
        if f["model"] == "cnn":
            reached = "reached" if f["right_of_36"] >= int(deck) else "not reached"
            said.append(f"{deck} at d = {f['dim']}: {reached}, {f['right_of_36']}")
    return f"""
The reader above, which knows half of the test images, sets a bound of its own. So once more with all {found["train_images"]:,} training
images, {found["epochs"]} epochs, and a reader that learned from training images alone (`{found["command"]}`, commit
{found["commit"]}): of originals it reads {found["originals_read_right"]:.1%}, and {found["originals_of_36"]} of the deck's 36. The deck's
counts for the CNN: {"; ".join(said)}.

{table(["d", "model", "error", "read", "of 36 (deck)"], rows)}
"""


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    fits = {(f["dim"], f["model"]): f for f in r["deep"]["fits"]}
    rows = []
    for dim in sorted({dim for dim, _ in fits}):
        errors = [f"{fits[dim, kind]['test_error']:.2f}" for kind in ("pca", "mlp", "cnn")]
        read = [f"{fits[dim, kind]['accuracy']:.1%}" for kind in ("pca", "mlp", "cnn")]
        both = [f"{fits[dim, kind]['right_of_36']} ({right_in_deck(dim, kind)})" for kind in ("pca", "cnn")]
        rows.append([dim, *errors, *read, *both])
    head = ["d", "PCA: error", "MLP: error", "CNN: error", "PCA: read", "MLP: read", "CNN: read"]
    head += ["PCA: of 36 (deck)", "CNN: of 36 (deck)"]
    angles = [[f["dim"], f"{f['largest_angle_rad']:.1e}", f"{f['error_linear']:.4f}", f"{f['error_pca']:.4f}"] for f in r["linear"]]
    epochs = r["deep"]["epochs"]
    return f"""\
## Autoencoders and PCA: `{r["command"]}`

The autoencoders lecture deck defines the linear autoencoder z = Uᵀx, x̂ = Uz. Its best U spans the subspace of the leading principal
components, in some other basis. Here U is found by gradients (L-BFGS from random numbers, {r["train_images"]:,} images of {r["dataset"]}):

{table(["d", "largest principal angle, rad", "error, linear autoencoder", "error, PCA"], angles)}

![Axes of PCA and columns of U](pictures/linear_autoencoder.png)

Deep autoencoders, {r["train_images"]:,} training images, Adam: fully connected ({epochs["mlp"]} epochs) and convolutional ({epochs["cnn"]}
epochs). Error: the deck's reconstruction loss, the mean of ‖x − g(f(x))‖², on {r["test_images"]:,} test images (their variance is
{r["variance"]:.2f}). Read: share of reconstructions that a classifier of clean digits reads as the digit they were (of originals it reads
{r["deep"]["originals_read_right"]:.1%}). Of 36: the same for the 36 test digits that the deck shows; in brackets, how many of the deck's
own printed reconstructions a transcription of its pages reads as it reads their originals.

{table(head, rows)}
{all_images(r)}
![Digits reconstructed by PCA and by a convolutional autoencoder](pictures/autoencoders.png)
"""


if __name__ == "__main__":
    main()

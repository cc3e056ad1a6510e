"""The thesis's section 6: samples by latent dimension, the latent plane of MNIST and of Frey Faces, and the images across it.

    python examples/thesis_latent.py [--quick | --full] [--out DIR] [--runs DIR] [--planes]

Writes thesis_samples.png, thesis_latent_mnist.png, thesis_latent_3d.png, thesis_latent_frey.png, thesis_manifold_mnist.png,
thesis_manifold_frey.png and thesis_latent.json.
The models are those that thesis_training.py trains; --planes needs the two of two dimensions only, draws what is of them and puts its
numbers into the JSON file of an earlier run.
"""

import argparse
import json
import sys
from typing import Any

import torch
from _common import Reader, commit, draw_sheet, finish, nearest, save, sheet, table, unit
from _thesis import Trained, latents, means, thesis_options, trained
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import norm
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from vae_fast import data, plots
from vae_fast.files import write_json
from vae_fast.models import MLPVAE

NEIGHBOURS = 20
#: Samples that are judged, and those of them that are shown, in two rows.
SAMPLES, SHOWN = 1000, 40
#: Test digits drawn in the latent plane: every second of MNIST's.
DRAWN = 5000


def grid(n: int) -> Tensor:
    """The plane's points whose coordinates cut the standard normal in n parts of equal mass, at each part's median, ``(n, n, 2)``.

    Rows go down from the largest second coordinate, columns right from the least first one: as in a picture of the plane.
    """
    z = torch.from_numpy(norm.ppf((torch.arange(n) + 0.5).double() / n)).float()
    return torch.stack((z.expand(n, n), z.flip(0)[:, None].expand(n, n)), -1)


@torch.no_grad()
def manifold(model: MLPVAE, n: int) -> Tensor:
    """The decoder's images over :func:`grid`, ``(n, n, pixels)``."""
    return model.mean_of(model.decode(grid(n).flatten(0, 1))).unflatten(0, (n, n))


def film_of(found: data.Dataset) -> Tensor:
    """All images, in the order they were in before the data set was split."""
    parts = torch.cat((found.train, found.valid, found.test))
    index = torch.arange(len(parts))
    split = data.spread_split(found.name, index, index, "", (1, 1))
    return parts[torch.cat((split.train, split.valid, split.test)).argsort()]


def samples(args: argparse.Namespace, models: list[Trained]) -> dict[str, Any]:
    """Draws from the prior, decoded: how sure a classifier of digits is of them, and how far they are from real ones."""
    found = models[0].found
    test, labels = unit(found.test), found.test_labels
    held = len(test) // 2
    reader = Reader(test[:held], labels[:held])
    near = unit(found.train[:20_000])
    results: dict[str, Any] = {"rows": [], "confidence_test": reader.confidence(test[held:])}
    results["distance_test"] = nearest(test[held:][:SAMPLES], near)
    rows, names = [], []
    for t in models:
        made = t.model.sample(SAMPLES, generator=torch.Generator().manual_seed(args.seed))
        row = {"dim": t.setting.latent, "confidence": reader.confidence(made), "distance": nearest(made, near)}
        results["rows"].append(row)
        print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
        rows += list(made[:SHOWN].chunk(2))
        names += [f"latent {t.setting.latent}", ""]
    figure = Figure(figsize=(9.0, 0.48 * len(rows) + 0.2), layout="constrained")
    draw_sheet(figure.add_subplot(), rows, found.image_shape, names)
    save(figure, args.out / "thesis_samples.png")
    return results


def draw_digits(args: argparse.Namespace, codes: Tensor, labels: Tensor) -> None:
    """The plane from above, each digit's name where its middle is, and with each digit at its own height.

    The outermost 1% of points on each side are left out: they are few, far, and would leave the rest half of the picture.
    """
    low, high = codes.quantile(0.01, 0).tolist(), codes.quantile(0.99, 0).tolist()
    inside = (codes >= torch.tensor(low)).all(1) & (codes <= torch.tensor(high)).all(1)
    codes, labels, palette = codes[inside], labels[inside], colormaps["tab10"]
    figure = Figure(figsize=(7.2, 7.2 * min(1.2, max(0.7, (high[1] - low[1]) / (high[0] - low[0])))), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(*codes.T.numpy(), s=9, c=palette(labels.numpy()), alpha=0.7, lw=0)
    for digit in range(10):
        x, y = codes[labels == digit].median(0).values.tolist()
        box = {"boxstyle": "circle,pad=0.25", "fc": "white", "ec": palette(digit), "lw": 2}
        axes.text(x, y, str(digit), ha="center", va="center", fontsize=13, fontweight="bold", bbox=box)
    axes.set(xlabel="mean of $z_1$", ylabel="mean of $z_2$", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, args.out / "thesis_latent_mnist.png")
    figure = Figure(figsize=(8.0, 8.6))
    deep = figure.add_axes((0.0, 0.0, 1.0, 1.0), projection="3d", computed_zorder=False)
    for digit in range(10):
        x, y = codes[labels == digit].T.numpy()
        deep.scatter(x, y, [digit] * len(x), s=14, color=palette(digit), alpha=0.75, lw=0, depthshade=False)
        box = {"boxstyle": "circle,pad=0.2", "fc": "white", "ec": palette(digit), "lw": 2}
        where = (float(codes[labels == digit][:, 0].median()), float(codes[labels == digit][:, 1].median()), digit)
        deep.text(*where, str(digit), fontsize=14, fontweight="bold", ha="center", va="center", bbox=box, zorder=100)
    deep.set(xlabel="mean of $z_1$", ylabel="mean of $z_2$", zlabel="digit", zticks=range(10), zticklabels=[])
    for axis in (deep.xaxis, deep.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True))
    deep.view_init(14, -62)
    deep.set_box_aspect((1.0, 1.0, 1.25), zoom=1.05)
    save(figure, args.out / "thesis_latent_3d.png")


def digits_plane(args: argparse.Namespace, t: Trained) -> dict[str, Any]:
    """Test digits in the latent plane, and which of them lie among others."""
    codes, labels = means(t.model, unit(t.found.test)), t.found.test_labels
    step = max(1, len(codes) // DRAWN)
    draw_digits(args, codes[::step], labels[::step])
    # Each digit by its nearest neighbours among the others: the digit itself is left out of its own vote.
    found = KNeighborsClassifier(NEIGHBOURS).fit(codes.numpy(), labels.numpy())
    votes = labels[torch.from_numpy(found.kneighbors(return_distance=False))]
    among = torch.zeros(10, 10, dtype=torch.float64)
    for digit in range(10):
        among[digit] = torch.bincount(votes[labels == digit].flatten(), minlength=10).double() / max(1, votes[labels == digit].numel())
    mixed = among + among.T
    pairs = sorted(((float(mixed[a, b]) / 2.0, a, b) for a in range(10) for b in range(a)), reverse=True)
    read = votes.mode(1).values == labels
    results = {"neighbours": NEIGHBOURS, "read_right": read.double().mean().item(), "drawn": len(codes[::step])}
    results["mixed"] = [{"digits": [b, a], "share": share} for share, a, b in pairs[:3]]
    print(f"nearest neighbours read right {results['read_right']:.3f}; most mixed: {results['mixed']}")
    return results


def film_plane(args: argparse.Namespace, t: Trained) -> dict[str, Any]:
    """Every frame in the latent plane, coloured by its place in the film; how far the next frame is, and any other."""
    frames = film_of(t.found)
    codes = means(t.model, unit(frames))
    plots.latent_scatter(args.out / "thesis_latent_frey.png", codes, torch.arange(len(codes)), "frame")
    steps = (codes[1:] - codes[:-1]).norm(dim=1)
    other = codes[torch.randperm(len(codes), generator=torch.Generator().manual_seed(args.seed))]
    results = {"frames": len(codes), "next": float(steps.median()), "any": float((codes - other).norm(dim=1).median())}
    print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in results.items()))
    return results


def draw_manifold(args: argparse.Namespace, t: Trained, n: int) -> None:
    """The images across the plane, with its coordinates."""
    height, width = t.found.image_shape
    marks = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
    places = n * norm.cdf(marks)
    figure = Figure(figsize=(7.2, 7.2 * height / width), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(sheet(list(manifold(t.model, n)), (height, width), gap=0), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    names = [f"{mark:g}".replace("-", "−") for mark in marks]
    axes.set_xticks(places * width - 0.5, names)
    axes.set_yticks((n - places) * height - 0.5, names)
    axes.set_xlabel("$z_1$")
    axes.set_ylabel("$z_2$")
    save(figure, args.out / f"thesis_manifold_{t.setting.group}.png")


def planes(args: argparse.Namespace, digits: Trained, faces: Trained) -> dict[str, Any]:
    """All that is of the two models of two dimensions."""
    across = {"mnist": 10, "frey": 6} if args.quick else {"mnist": 16, "frey": 8}  # a phone shows so many that can be seen
    for t in (digits, faces):
        draw_manifold(args, t, across[t.setting.group])
    return {"grid": across, "plane": digits_plane(args, digits), "film": film_plane(args, faces)}


def add_planes(args: argparse.Namespace) -> None:
    """Draw and measure the planes; put what was found into the JSON file of an earlier run."""
    path = args.out / "thesis_latent.json"
    if not path.exists():
        sys.exit(f"error: {path}: not there: run without --planes first")
    digits, faces = trained(args, latents(args.quick)[2]), trained(args, "frey-2")
    found: dict[str, Any] = json.loads(path.read_text())
    found |= planes(args, digits, faces)
    found["models"] |= {t.setting.name: t.made for t in (digits, faces)}
    found["planes_added"] = {"command": "python examples/thesis_latent.py --planes" + " --quick" * args.quick, "commit": commit()}
    write_json(path, found)
    print(f"wrote {path}")


def main() -> None:
    """Take the models, draw, judge."""
    text = "only what is of the two models of two dimensions; the rest of an earlier run's JSON file stays"
    args = thesis_options(__doc__, lambda parser: parser.add_argument("--planes", action="store_true", help=text))
    if args.planes:
        add_planes(args)
        return
    digits = [trained(args, name) for name in latents(args.quick).values()]
    faces = trained(args, "frey-2")
    results: dict[str, Any] = {"dataset": digits[0].setting.dataset, "film_dataset": faces.setting.dataset}
    results |= {"samples": samples(args, digits)} | planes(args, digits[0], faces)
    results["models"] = {t.setting.name: t.made for t in (*digits, faces)}
    pictures = ("samples", "latent_mnist", "latent_3d", "latent_frey", "manifold_mnist", "manifold_frey")
    finish(args, results, [f"thesis_{name}.png" for name in pictures])


def again(r: dict[str, Any]) -> str:
    """What the page says where the planes are of a later run than the samples."""
    if "planes_added" not in r:
        return ""
    return (
        f" (From here on: `{r['planes_added']['command']}`, of the two models of two dimensions trained anew; the table is of the first.)"
    )


def section(r: dict[str, Any]) -> str:
    """This example's part of the page."""
    drawn, plane, film = r["samples"], r["plane"], r["film"]
    rows = [[row["dim"], f"{row['confidence']:.3f}", f"{row['distance']:.1f}"] for row in drawn["rows"]]
    rows.append(["test digits", f"{drawn['confidence_test']:.3f}", f"{drawn['distance_test']:.1f}"])
    head = ["latent", "classifier's confidence", "distance² to the nearest training digit"]
    mixed = "; ".join(f"{' and '.join(map(str, m['digits']))} ({m['share']:.1%})" for m in plane["mixed"])
    surest = max(drawn["rows"], key=lambda row: row["confidence"])["dim"]
    return f"""\
## The thesis: samples and latent spaces: `{r["command"]}`

Section 6 of the thesis, from the models of section 5.1. Draws from the prior, decoded, two rows for each latent dimension. The thesis finds
less noise in them with more dimensions. A classifier of clean digits, over {SAMPLES:,} draws of each, is surest with {surest}; the distance
is the mean square one to the nearest of 20,000 training images, and a blurred image is near to many:

{table(head, rows)}

![Samples by latent dimension](pictures/thesis_samples.png)

The latent plane: posterior means of {plane["drawn"]:,} test digits. The thesis says that digits of like strokes lie close, and names
3 and 8, 4 and 9. Among the {plane["neighbours"]} nearest neighbours of a digit, the pairs that are taken for one another most are
{mixed}, with the share of neighbours that are the other digit; most neighbours are of the digit's own kind for
{plane["read_right"]:.1%}. The thesis draws the plane in three dimensions too and does not say what the third one is; here it is the digit,
so that none lies over another. Either is without the outermost 1% on each side.{again(r)}

![MNIST in the latent plane](pictures/thesis_latent_mnist.png)

![The same, each digit at its own height](pictures/thesis_latent_3d.png)

The Frey Faces, all {film["frames"]:,}, coloured by their place in the film. From a frame to the next it is {film["next"]:.2f} in the plane
(median), to any other {film["any"]:.2f}: the autoencoder, which was not told the order, puts frames that follow each other close together.

![Frey Faces in the latent plane](pictures/thesis_latent_frey.png)

What the decoder makes of points of either plane that cut the prior in parts of equal mass (the inverse of the normal distribution
function at the middle of each part), {r["grid"]["mnist"]} × {r["grid"]["mnist"]} and {r["grid"]["frey"]} × {r["grid"]["frey"]}:

![The digits across the plane](pictures/thesis_manifold_mnist.png)

![The faces across the plane](pictures/thesis_manifold_frey.png)
"""


if __name__ == "__main__":
    main()

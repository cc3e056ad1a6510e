"""``vae-fast explore``: move through the latent plane of a trained VAE."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_fast import data, plots
from vae_fast._optional import optional_import
from vae_fast.cli._common import named_path, number
from vae_fast.cli.train import weight_count
from vae_fast.errors import FileError, MissingExtraError, RunError
from vae_fast.models import MLPVAE
from vae_fast.training import checkpoint
from vae_fast.training.checkpoint_content import compare_weights

#: The data sets that have a name, and the shape of their images.
_SETS = {"digits": (8, 8), "mnist": (28, 28), "frey": (28, 20)}
_NONE = "none"
#: Backends of matplotlib that draw to files only; every other one opens a window.
_NO_WINDOW = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")


def add_command(commands: Any) -> None:
    """Add ``explore`` to the commands of the parser."""
    explore = commands.add_parser(
        "explore",
        help="move through the latent plane of a trained VAE",
        description="Open a window with the latent plane of a VAE, two sliders and the image decoded there; click or drag on the plane "
        "to move. Or write the same as a page that a browser opens without a server or network.",
        epilog="With --page or --png the file is written and no window opens. Exit code: 0, 2 for an error (one line on stderr), 130 when "
        "interrupted. Example: vae-fast explore runs/digits --page digits.html",
    )
    explore.set_defaults(run=_explore, interrupted="the window is closed")
    add = explore.add_argument
    add("checkpoint", metavar="CHECKPOINT", type=named_path, help="what `vae-fast train` wrote: its folder or its checkpoint.pt")
    add("--page", metavar="FILE.html", type=named_path, help="write one HTML file that decodes in the browser")
    add("--png", metavar="FILE.png", type=named_path, help="write what the window shows when it opens")
    text = "images to encode and show as points: the test images of digits, mnist or frey, the rows of FILE.npy, or none"
    add("--images", metavar="IMAGES", help=f"{text} (default: what CHECKPOINT was trained on, where it is at hand)")
    text = "where the files of mnist and frey are; nothing is downloaded"
    add("--data-dir", metavar="DIR", type=named_path, help=f"{text} (default: $VAE_FAST_DATA, else the user's cache)")
    text = "the two latent dimensions to move along, from 1 (default: 1 2)"
    add("--dims", metavar=("I", "J"), nargs=2, type=number(int, 1), default=(1, 2), help=text)
    text = "start at the encoding of image N of --images, from 0, where the other dimensions stay (default: all at 0)"
    add("--image", metavar="N", type=number(int, 0), help=text)
    text = "the page holds N x N images decoded beforehand instead of the network's weights: smaller for a large network, and blended"
    add("--grid", metavar="N", type=number(int, 2), help=text)

    text = "images and several classifiers' probabilities of their classes, a file that plots.Readings.save wrote: a third slider goes"
    add("--readings", metavar="FILE.npz", type=named_path, help=f"{text} through them, each with its bars, starting at its encoding")


def _explore(args: argparse.Namespace) -> int:
    if args.grid is not None and args.page is None:
        raise RunError("--grid: goes with --page only")
    if args.page is None or args.png is not None:
        _require()
    plane = _plane(args)
    readings = None if args.readings is None else plots.load_readings(args.readings)
    if readings is not None and readings.images.shape[1:] != plane.image_shape:
        (a, b), (c, d) = readings.images.shape[1:], plane.image_shape
        raise RunError(f"--readings {args.readings}: images of {a} x {b} pixels: expected {c} x {d}, those of {args.checkpoint}")
    if args.page is not None:
        how = plots.explorer_page(args.page, plane, grid=args.grid, readings=readings)
        print(f"wrote {args.page} ({args.page.stat().st_size / 1e6:.1f} MB), to be opened in a browser; it decodes by {how}", flush=True)
    if args.png is not None:
        plots.explorer_picture(args.png, plane, readings)
        print(f"wrote {args.png}", flush=True)
    if args.page is None and args.png is None:
        _show(plane, readings)
    return 0


def _require() -> None:
    try:
        optional_import("matplotlib.figure", "matplotlib", "the window")
    except MissingExtraError as error:
        raise MissingExtraError(f"{error}; or write a page with --page FILE.html, which does without") from None


def _show(plane: plots.LatentPlane, readings: plots.Readings | None) -> None:
    matplotlib, pyplot = (optional_import(name, "matplotlib", "the window") for name in ("matplotlib", "matplotlib.pyplot"))
    advice = "write a page with --page FILE.html, or a picture with --png FILE.png"
    try:
        figure = pyplot.figure(figsize=(9.6, 6.0), layout="constrained")
    except ImportError as error:  # a backend that was asked for and does not run here
        raise RunError(f"matplotlib cannot open a window: {error}; {advice}") from None
    backend = str(matplotlib.get_backend())
    if backend.lower() in _NO_WINDOW:
        raise RunError(f"there is no display to open a window on (matplotlib's backend is {backend}); {advice}")
    explorer = plots.Explorer(figure, plane, readings)
    pyplot.show()
    del explorer  # until here: figures refer to their widgets weakly


# --- what is explored -------------------------------------------------------------------------------------------------


def _plane(args: argparse.Namespace) -> plots.LatentPlane:
    model, config, file = _model(args.checkpoint)
    latent = model.latent_dim
    if latent < 2:
        raise RunError(f"{file}: its latent space has 1 dimension: expected 2 or more to make a plane")
    first, second = args.dims
    if first == second or max(first, second) > latent:
        raise RunError(f"--dims {first} {second}: expected two different dimensions of 1 to {latent}")
    images = _images(args, config)
    points: dict[str, Any] = {}
    if images is None:
        shape = _shape(file, config, model.data_dim)
    else:
        name, x, labels, label_name, shape = images
        if x.shape[1] != model.data_dim:
            raise RunError(f"--images {name}: images of {x.shape[1]} pixels: {file} was trained on {model.data_dim}")
        points = {"images": x, "labels": labels, "label_name": label_name}
    if args.image is not None:
        if images is None or args.image >= len(points["images"]):
            held = "there are none" if images is None else f"there are {len(points['images']):,}, from 0"
            raise RunError(f"--image {args.image}: expected the number of one of --images; {held}")
        points["at"] = points["images"][args.image]
    title = f"{config.get('dataset', 'VAE')}, {latent} latent dimensions"
    return plots.latent_plane(model, shape, (first - 1, second - 1), title=title, **points)


def _shape(file: Path, config: dict[str, Any], pixels: int) -> tuple[int, int]:
    """Height and width of an image, by the data set that a checkpoint names; if it names none, what is likely, and that it was assumed."""
    shape = _SETS.get(config.get("dataset", _NONE))
    if shape is not None and math.prod(shape) == pixels:
        return shape
    side = math.isqrt(pixels)
    like = next((f", those of {name}" for name, (h, w) in _SETS.items() if h * w == pixels), "")
    shape = next((s for s in _SETS.values() if math.prod(s) == pixels), (side, side) if side**2 == pixels else (1, pixels))
    print(f"{file} does not say how its images are laid out: {pixels} pixels taken as {shape[0]} x {shape[1]}{like}", flush=True)
    return shape


def _model(path: Path) -> tuple[MLPVAE, dict[str, Any], Path]:
    """The trained model, its settings and the file it was read from.

    Raises:
        FileError: naming the file and why it cannot be used.
    """
    file = path / "checkpoint.pt" if path.is_dir() else path
    state, note = checkpoint.newest(file)
    if note is not None:
        print(note, flush=True)
    weights: dict[str, Tensor] = dict(state["model"])
    dataset = state["config"].get("dataset", _NONE)
    try:
        hidden, latent = weights["decoder.0.weight"].shape
        data_dim = len(weights["decoder.4.bias"])
        # Compared before a model of that size is made: two small tensors can claim gigabytes for the others.
        if sum(w.numel() for w in weights.values()) != weight_count(data_dim, hidden, latent) or not isinstance(dataset, str):
            raise ValueError
        model = MLPVAE(latent, data_dim, hidden)
        compare_weights(file, weights, model.state_dict())
        model.load_state_dict(weights)
    except (KeyError, ValueError, TypeError, AttributeError):
        raise FileError(f"{file}: not a checkpoint of `vae-fast train`: its weights are not those of an MLPVAE") from None
    if not all(bool(w.isfinite().all()) for w in model.parameters()):
        raise FileError(f"{file}: its weights hold NaN or infinity: the training diverged")
    return model.eval(), state["config"], file


_Images = tuple[str, Tensor, Tensor, str, tuple[int, int]]


def _images(args: argparse.Namespace, config: dict[str, Any]) -> _Images | None:
    """Name, images, labels, what the labels are, and the shape of one; None for no images."""
    name: str = config.get("dataset", _NONE) if args.images is None else args.images
    if name == _NONE or (args.images is None and name not in _SETS):
        return None
    try:
        if name in _SETS:
            images = data.load_mnist(args.data_dir, download=False) if name == "mnist" else data.load(name, args.data_dir)
            return name, images.test, images.test_labels, images.label_name, images.image_shape
        if not Path(name).suffix and not Path(name).exists():
            raise RunError(f"--images {name}: neither a file nor one of {', '.join((*_SETS, _NONE))}")
        images = data.load_file(name)
    except (FileError, MissingExtraError) as error:
        if args.images is not None:
            raise
        print(f"no points: {error}", flush=True)
        return None
    x = torch.cat((data.in_model_dtype(images.train), images.valid, images.test))
    return name, x, torch.arange(len(x)), "row", images.image_shape

"""What the examples share: the list of them, options, JSON files, training, sheets of images, a classifier that reads digits."""

import argparse
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from torch import Tensor, nn

from vae_fast import data
from vae_fast.bench import sources
from vae_fast.errors import VaeFastError
from vae_fast.files import write_json
from vae_fast.training import fit

#: Every example, in the order of the page. Each is a script and a module with ``section(results) -> Markdown`` of its JSON file.
EXAMPLES = (
    "mixtures",
    "large_mixture",
    "mdn_inverse_sine",
    "autoencoders",
    "generation",
    "autoencoder_and_vae",
    "denoising",
    "probability",
    "faces",
    "pixels",
    "infinite_mixture",
    "evidence",
    "gradient_estimators",
    "sgvb",
    "vamp_prior",
    "disentanglement",
    "importance_weighted",
    "vae_inference",
    "convolutional_vae",
    "generative_and_discriminative",
    "bayesian_networks",
    "bayesian_neural_networks",
    "metropolis_hastings",
    "batch_size",
    "thesis_training",
    "thesis_listings",
    "thesis_classifier",
    "thesis_latent",
)
PICTURES = Path(__file__).parent / "pictures"
#: What gets a data set that is not there; {folder} is where data are looked for.
FETCH = {
    "mnist": "python -c 'from vae_fast.data import load_mnist; load_mnist()'",
    "frey": "curl --create-dirs -o {folder}/frey/frey_rawface.mat https://cs.nyu.edu/~roweis/data/frey_rawface.mat",
}


def options(
    doc: str | None, dataset: str | None = None, add: Callable[[argparse.ArgumentParser], None] | None = None
) -> argparse.Namespace:
    """Parse ``--quick``, ``--out``, ``--seed`` and, with a data set's name, ``--dataset``; the output folder is made, the seed set.

    With ``--quick`` the data set is ``digits``, which comes with scikit-learn: nothing is looked for. ``add`` adds options of an
    example's own.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    size_options(parser, "a small setting: seconds, and worse results")
    parser.add_argument("--out", type=Path, default=PICTURES, metavar="DIR", help="where to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: %(default)s)")
    if dataset is not None:
        text = f"default: {dataset}, with --quick digits; looked for in $VAE_FAST_DATA"
        parser.add_argument("--dataset", choices=("digits", "mnist", "frey"), help=text)
    if add is not None:
        add(parser)
    args = parser.parse_args()
    args.own = _given(parser, args)
    if dataset is not None and args.dataset is None:
        args.dataset = "digits" if args.quick else dataset
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    return args


def _given(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[str]:
    """An example's own options as they were given: those that differ from their defaults. Files and folders change no result."""
    words: list[str] = []
    for name, value in vars(args).items():
        if name in ("quick", "full", "out", "seed", "dataset") or value == parser.get_default(name) or isinstance(value, Path):
            continue
        words.append("--" + name.replace("_", "-"))
        values = value if isinstance(value, list) else [value] * (value is not True)
        words += [str(v).removesuffix(".0") for v in values]
    return words


def size_options(parser: argparse.ArgumentParser, quick: str) -> None:
    """``--quick`` and its opposite."""
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help=quick)
    size.add_argument("--full", action="store_true", help="the setting of the page (default)")


def load(name: str) -> data.Dataset:
    """A data set; or why not, and the command that gets it: nothing is downloaded unasked."""
    try:
        return data.load_mnist(download=False) if name == "mnist" else data.load(name)
    except VaeFastError as error:
        fetch = FETCH[name].format(folder=data.default_data_dir()) if name in FETCH else ""
        sys.exit(f"error: {error}" + (f"\nget it with: {fetch}" if fetch else ""))


def unit(x: Tensor) -> Tensor:
    """Grey values in [0, 1], float32."""
    return x.float() / 255.0 if x.dtype == torch.uint8 else x.float()


def commit() -> str:
    """The commit of the package and of the examples, which share code: marked where either differs from it."""
    return sources.commit(also=("examples/*.py",))


def command(args: argparse.Namespace) -> str:
    """The command that gives the same results again: the script and the options that were given to it."""
    words = ["python", f"examples/{Path(sys.argv[0]).name}"] + ["--quick"] * args.quick
    words += ["--seed", str(args.seed)] * (args.seed != 0)
    if "dataset" in args and not (args.quick and args.dataset == "digits"):
        words += ["--dataset", args.dataset]
    return shlex.join(words + args.own)


def finish(args: argparse.Namespace, results: dict[str, Any], pictures: Iterable[str]) -> None:
    """Write the JSON file: how it was made, then the results; and say what was written."""
    name = f"{Path(sys.argv[0]).stem}.json"
    write_json(args.out / name, {"command": command(args), "seed": args.seed, "commit": commit()} | results)
    print(f"wrote {args.out}: {', '.join([*pictures, name])}")


def learn(model: nn.Module, x: Tensor, epochs: int, lr: float = 2e-3, batch_size: int = 100) -> float:
    """Minimise ``model.loss`` over the rows of x with Adam, its step falling to zero along a cosine; the last epoch's loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    history = fit(
        model, x, epochs=epochs, batch_size=batch_size, optimizer=optimizer, drop_last=False, callbacks=[lambda _: schedule.step()]
    )
    return history[-1]["loss"]


class Reader:
    """A classifier of clean digits (one hidden layer), trained on half of the test images, to read what models give back."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        """Train it."""
        self.network = MLPClassifier(256, max_iter=30 if len(images) > 1000 else 300, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.network.fit(images.numpy(), labels.numpy())

    def read(self, images: Tensor) -> Tensor:
        """The most probable class of each."""
        return torch.from_numpy(self.network.predict(images.clamp(0.0, 1.0).numpy()))

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Share of images that are read as their label."""
        return (self.read(images) == labels).double().mean().item()

    def confidence(self, images: Tensor) -> float:
        """Mean probability of the most probable class."""
        return float(self.network.predict_proba(images.clamp(0.0, 1.0).numpy()).max(1).mean())


def nearest(images: Tensor, train: Tensor) -> float:
    """Mean squared distance to the nearest training image."""
    return torch.cat([torch.cdist(part, train).square().min(1).values for part in images.split(250)]).mean().item()


def sheet(rows: Sequence[Tensor], shape: tuple[int, int], gap: int = 1, paper: float = 1.0) -> np.ndarray[Any, Any]:
    """One picture of rows of images, each ``(n, height * width)`` in [0, 1]."""
    height, width = shape
    out = np.full((len(rows) * (height + gap) - gap, len(rows[0]) * (width + gap) - gap), paper, dtype=np.float32)
    for i, row in enumerate(rows):
        for j, image in enumerate(row.detach().float().clamp(0.0, 1.0).numpy().reshape(-1, height, width)):
            top, left = i * (height + gap), j * (width + gap)
            out[top : top + height, left : left + width] = image
    return out


def draw_sheet(
    axes: Any, rows: Sequence[Tensor], shape: tuple[int, int], labels: Sequence[str] = (), title: str = "", size: float = 10.0
) -> None:
    """Draw a sheet with a word beside each row; the title's letters are of ``size`` points."""
    axes.imshow(sheet(rows, shape), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([i * (shape[0] + 1) + 0.5 * shape[0] for i in range(len(labels))], labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontsize=size)


def save(figure: Figure, path: Path, dpi: int = 100) -> None:
    """Write a figure, without empty margins.

    A phone shows it about 3.7 inches wide, whatever its own width: one of 5 inches with letters of 11 points can be read there.
    """
    figure.savefig(path, dpi=dpi, bbox_inches="tight", pad_inches=0.05)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)

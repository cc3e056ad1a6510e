"""The thesis's models: their settings, how they are trained or taken up again, and where the trained ones are kept."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _common import PICTURES, command, commit, load, options, unit
from sklearn.datasets import load_digits
from torch import Tensor

from vae_fast import cli, data
from vae_fast.errors import VaeFastError
from vae_fast.files import write_json
from vae_fast.models import MLPVAE
from vae_fast.training import Record, checkpoint, evaluate, fit, say

ROOT = Path(__file__).resolve().parent.parent
#: The epochs whose loss the thesis prints for each run of its section 5.1, and what it prints; 0 is before the first step.
SOURCE: dict[str, dict[int, float]] = {
    "mnist-2": {0: 580.56123, 1: 177.767873, 10: 143.696704, 20: 139.802531, 40: 136.943999, 50: 135.980511},
    "mnist-10": {0: 570.4643, 1: 147.226382, 10: 104.356407, 20: 100.918969, 40: 98.265996, 50: 97.528469},
    "mnist-20": {1: 148.805110, 10: 101.593139, 20: 98.604531, 40: 96.426431, 50: 95.786946},
    "mnist-50": {0: 540.842798, 1: 161.469195, 10: 103.025157, 20: 99.912300, 40: 97.802639, 50: 97.214724},
    "frey-2": {
        **{100: 350.949242, 200: 350.168257, 300: 350.033113, 400: 350.139278, 500: 349.059999},
        **{600: 348.961367, 700: 348.312843, 800: 348.081236, 900: 347.903923, 1000: 347.798731},
    },
    "frey-20": {100: 350.949242, 1000: 347.798731, 2000: 347.669384, 3000: 347.504955, 4000: 347.014309, 5000: 346.750311},
}
#: The test digit and the frame whose reconstruction is kept through the epochs.
FILMED = {"mnist": 8, "frey": 100}
#: Of a model's page: decoded images along each side, and the test image at which the dimensions stay that it does not move along.
GRID, EXPLORED = 24, 0


@dataclass(frozen=True)
class Setting:
    """One model.

    Attributes:
        name: of its folder; those of the thesis's models are the keys of ``SOURCE``.
        group: ``"mnist"`` or ``"frey"``: the thesis's experiment that it belongs to.
        dataset: what it is trained on: with ``--quick``, digits in both groups.
        batch: images per step.
        whole: True: on every image; False: on the training images alone.
        seed: added to ``--seed``.
        extra: True: a model beside those of the page, to show what another seed or another batch does.
    """

    name: str
    group: str
    dataset: str
    latent: int
    epochs: int
    hidden: int = 500
    batch: int = 100
    whole: bool = False
    seed: int = 0
    extra: bool = False


def _published() -> list[Setting]:
    # The thesis has 55,000 training digits. Which frames it trained on it does not say: all of them here. It gives their batches as 1,000
    # and as 5,000, of 1,965 frames: 1,000 here, one batch an epoch, which its printed losses go with; with 100 they fall much faster. A
    # second model of each kind leaves frames out, to be tested on.
    found = [Setting(f"mnist-{latent}", "mnist", "mnist", latent, 50) for latent in (2, 20, 10, 50, 5)]
    frey = [(2, 1000), (20, 5000)]
    found += [Setting(f"frey-{latent}", "frey", "frey", latent, epochs, batch=1000, whole=True) for latent, epochs in frey]
    found += [Setting(f"frey-{latent}-held-out", "frey", "frey", latent, epochs, batch=1000) for latent, epochs in frey]
    found += [Setting(f"mnist-20-seed-{seed}", "mnist", "mnist", 20, 50, seed=seed, extra=True) for seed in (1, 2)]
    return [*found, Setting("frey-2-batch-100", "frey", "frey", 2, 1000, whole=True, extra=True)]


def settings(quick: bool) -> dict[str, Setting]:
    """Every model by name, in the order they are trained in; with ``quick``, small ones of digits in place of both data sets."""
    if not quick:
        return {s.name: s for s in _published()}
    found = [Setting(f"mnist-{latent}", "mnist", "digits", latent, 40, 128) for latent in (2, 5)]
    found += [Setting("frey-2", "frey", "digits", 2, 40, 128, 200, True), Setting("frey-2-held-out", "frey", "digits", 2, 40, 128, 200)]
    found += [Setting("mnist-5-seed-1", "mnist", "digits", 5, 40, 128, seed=1, extra=True)]
    found += [Setting("frey-2-batch-100", "frey", "digits", 2, 40, 128, whole=True, extra=True)]
    return {s.name: s for s in found}


def latents(quick: bool) -> dict[int, str]:
    """The names of the MNIST models by latent dimension, ascending; extra ones are left out."""
    found = {s.latent: s.name for s in settings(quick).values() if s.group == "mnist" and not s.extra}
    return dict(sorted(found.items()))


def paged(quick: bool) -> list[str]:
    """The names of the models that have a page of their own: the thesis's, and the one of 5 dimensions between them."""
    return [s.name for s in settings(quick).values() if not s.extra and not s.name.endswith("-held-out")]


def thesis_options(doc: str | None, add: Callable[[argparse.ArgumentParser], None] | None = None) -> argparse.Namespace:
    """:func:`_common.options` and ``--runs``; ``add`` adds a script's own."""

    def more(parser: argparse.ArgumentParser) -> None:
        text = (
            "where trained models are kept, and a run that was stopped goes on from (default: runs/thesis; with --quick OUT/thesis-quick)"
        )
        parser.add_argument("--runs", type=Path, metavar="DIR", help=text)
        if add is not None:
            add(parser)

    args = options(doc, add=more)
    if args.runs is None:
        beside = ROOT / "runs" if args.out == PICTURES else args.out  # never among the pictures
        args.runs = beside / "thesis-quick" if args.quick else ROOT / "runs" / "thesis"
    return args


def train_labels(dataset: str) -> Tensor:
    """The digits that the training images of ``"mnist"`` or ``"digits"`` show, ``(n,)`` int64, in their order."""
    if dataset == "mnist":
        labels = data.read_idx(data.mnist_file(data.default_data_dir(), "train-labels-idx1-ubyte", download=False))
        return torch.from_numpy(labels.astype("int64"))[-len(load(dataset).train) :]
    digits = torch.from_numpy(load_digits().target.astype("int64"))
    return data.spread_split(dataset, digits, digits, "digit", (1, 1)).train


def images_of(setting: Setting, found: data.Dataset) -> tuple[Tensor, Tensor | None]:
    """What a model is trained on, and what its loss is followed on."""
    if setting.whole:
        return torch.cat((found.train, found.valid, found.test)), None
    return found.train, found.valid


@dataclass
class Trained:
    """A trained model and how it came about.

    Attributes:
        setting, model: which, and what came out; in evaluation mode.
        found: its data set.
        history: one record per epoch, see :func:`vae_fast.training.fit`.
        film: the reconstruction of one image after so many epochs, ``(pixels,)`` in [0, 1]; at -1, the image.
        made: commits, seed, command and threads.
    """

    setting: Setting
    model: MLPVAE
    found: data.Dataset
    history: list[Record]
    film: dict[int, Tensor]
    made: dict[str, Any]


def untrained(setting: Setting, pixels: int, seed: int) -> MLPVAE:
    """A model with the weights that its training begins with."""
    torch.manual_seed(seed)
    return MLPVAE(setting.latent, pixels, setting.hidden)


def start_loss(setting: Setting, seed: int) -> float:
    """The loss over the training images before the first step: epoch 0 of the thesis."""
    images = images_of(setting, load(setting.dataset))[0]
    return evaluate(untrained(setting, images.shape[1], seed), images)["loss"]


def trained(args: argparse.Namespace, name: str) -> Trained:
    """A model by name: trained now, or as far as its checkpoint in ``args.runs`` does not go.

    Raises:
        SystemExit: in one line, if the data are not there or the checkpoint does not fit.
    """
    setting = settings(args.quick)[name]
    found = load(setting.dataset)
    train, valid = images_of(setting, found)
    folder: Path = args.runs / name
    file = folder / "checkpoint.pt"
    seed = args.seed + setting.seed
    model = untrained(setting, train.shape[1], seed)
    film = _Film(folder / "film.json", model, unit(found.test if setting.group == "mnist" else found.train)[FILMED[setting.group]])
    try:
        resume = file.exists()
        done, about = 0, {"dataset": setting.dataset}  # which the explorer goes by
        if resume:
            state = checkpoint.load(file)
            model.load_state_dict(state["model"])
            done = int(state["epoch"])
            about = {key: value for key, value in about.items() if key in state["config"]}  # a run goes on with the settings it began with
        if not resume or "partial" not in state:
            film.take(done)  # the first; or that of a run that was stopped between its checkpoint and its picture
        made = made_of(args, folder, seed, done < setting.epochs)
        history = fit(
            model,
            train,
            valid=valid,
            epochs=setting.epochs,
            batch_size=setting.batch,
            seed=seed,
            checkpoint=file,
            resume=resume,
            config={"thesis": name, "latent": setting.latent, "hidden": setting.hidden, **about},
            callbacks=[lambda history: film.take(len(history)), lambda history: _tell(name, setting, history)],
        )
    except (VaeFastError, RuntimeError) as error:  # RuntimeError: weights of another shape
        sys.exit(f"error: {str(error).splitlines()[0]}; delete {folder} to begin this model anew")
    model.eval()
    return Trained(setting, model, found, history, film.taken, made)


def write_pages(args: argparse.Namespace, models: list[Trained]) -> None:
    """Each model's latent plane as a page, by ``vae-fast explore``, along the two dimensions whose means vary most over the test images.

    The pages hold decoded images, not the network: that of MNIST takes up to 3.5 MB.

    Raises:
        SystemExit: if a page cannot be written.
    """
    folder = ROOT / "docs" / "explore" if args.out == PICTURES else args.out / "pages"
    folder.mkdir(parents=True, exist_ok=True)
    for t in models:
        name = t.setting.name
        if name not in paged(args.quick):
            continue
        most = means(t.model, unit(t.found.test)).var(0).topk(2).indices.add(1).sort().values
        where = ["--grid", str(GRID), "--dims", *map(str, most.tolist())] + ["--image", str(EXPLORED)] * (t.setting.latent > 2)
        if code := cli.main(["explore", str(args.runs / name), "--page", str(folder / f"{name}.html"), *where]):
            sys.exit(code)


@torch.no_grad()
def means(model: MLPVAE, x: Tensor) -> Tensor:
    """Latent means, ``(n, latent)``."""
    return torch.cat([model.encode(part)[0] for part in x.split(1000)])


def shown_epoch(epoch: int) -> bool:
    """Whether a reconstruction is kept after this epoch: 0, 1, 2, 5, 10, 20, 50 and so on."""
    return epoch == 0 or str(epoch).rstrip("0") in ("1", "2", "5")


class _Film:
    """One image's reconstruction after chosen epochs, in a file beside the checkpoint: nothing is lost with a run that is stopped."""

    def __init__(self, path: Path, model: MLPVAE, image: Tensor) -> None:
        """Take up what is there."""
        self.path, self.model, self.image = path, model, image
        self.taken: dict[int, Tensor] = {-1: image}
        if path.exists():
            self.taken |= {int(k): torch.tensor(v) / 255.0 for k, v in json.loads(path.read_text()).items()}

    def take(self, epoch: int) -> None:
        """The reconstruction after this epoch, if it is one of those that are shown and not there yet."""
        if not shown_epoch(epoch) or epoch in self.taken:
            return
        self.taken[epoch] = (self.model.reconstruct(self.image[None])[0] * 255.0).round() / 255.0
        write_json(self.path, {k: (v * 255.0).round().int().tolist() for k, v in self.taken.items() if k >= 0})


def made_of(args: argparse.Namespace, folder: Path, seed: int, goes_on: bool) -> dict[str, Any]:
    """What is recorded of a run's making: with which commits it was begun and taken up again."""
    path = folder / "run.json"
    made: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"seed": seed, "commits": []}
    if goes_on:
        made["commits"] += [commit()] if commit() not in made["commits"] else []
        made |= {"command": command(args), "threads": torch.get_num_threads()}
        write_json(path, made)
    return made


def _tell(name: str, setting: Setting, history: list[Record]) -> None:
    every = max(1, setting.epochs // 10)
    if len(history) % every == 0:
        r = history[-1]
        valid = f"  validation {r['valid_loss']:.2f}" if "valid_loss" in r else ""
        say(f"{name}: epoch {len(history)}/{setting.epochs}  loss {r['loss']:.2f}  KL {r['kl']:.2f}{valid}  {r['seconds']:.2f} s")

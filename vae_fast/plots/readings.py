"""What several classifiers think of test images: kept in a file, drawn as bars, shown by the explorer."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_fast.errors import FileError
from vae_fast.files import atomic_write
from vae_fast.plots._figure import PathLike, bare

#: Bars of the class that the image shows, and of every other: apart for colour-blind readers, too.
RIGHT, WRONG = "#2a7f62", "#d9772b"


@dataclass(frozen=True)
class Readings:
    """Images, and each classifier's probabilities of their classes.

    Attributes:
        images: ``(n, height, width)`` uint8.
        labels: ``(n,)`` int64: the classes that they show, from 0.
        probabilities: ``(n, classifiers, classes)`` float32, each row's sum 1.
        names: of the classifiers.

    Raises:
        ValueError: naming what does not fit, the value given and what was expected.

    Example:
        >>> sure, unsure = [0.0, 1.0], [0.5, 0.5]
        >>> Readings(torch.zeros(1, 8, 8).byte(), torch.tensor([1]), torch.tensor([[sure, unsure]]), ("one", "other")).names
        ('one', 'other')
    """

    images: Tensor
    labels: Tensor
    probabilities: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Compare the parts with one another."""
        p, n = self.probabilities, len(self.images)
        if self.images.dtype != torch.uint8 or self.images.ndim != 3 or n == 0:
            raise ValueError(f"images: {self.images.dtype} of shape {tuple(self.images.shape)}: expected uint8 (n, height, width), n > 0")
        if p.dtype != torch.float32 or p.ndim != 3 or p.shape[:2] != (n, len(self.names)) or p.shape[1] == 0:
            shape = f"({n}, {len(self.names)}, classes)"
            raise ValueError(f"probabilities: {p.dtype} of shape {tuple(p.shape)}: expected float32 {shape}, a classifier for each name")
        if not bool((p >= 0.0).all()) or not torch.allclose(p.sum(-1), torch.ones(()), atol=1e-3):
            raise ValueError("probabilities: expected values of at least 0 that add up to 1 for each image and classifier")
        whole = self.labels.dtype == torch.int64 and self.labels.shape == (n,)
        if not whole or int(self.labels.min()) < 0 or int(self.labels.max()) >= p.shape[2]:
            raise ValueError(
                f"labels: {self.labels.dtype} of shape {tuple(self.labels.shape)}: expected {n} int64 of 0 to {p.shape[2] - 1}"
            )

    def save(self, path: PathLike) -> None:
        """Write a file (NumPy's ``.npz``) that :func:`load_readings` reads.

        Raises:
            FileError: if it cannot be written.
        """
        arrays = {name: getattr(self, name).numpy() for name in ("images", "labels", "probabilities")}
        with atomic_write(Path(path)) as file:
            np.savez_compressed(file, names=np.array(self.names), **arrays)


def load_readings(path: PathLike) -> Readings:
    """What :meth:`Readings.save` wrote.

    Raises:
        FileError: naming the file and why it cannot be used.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "readings.npz"
        ...     Readings(torch.zeros(1, 8, 8).byte(), torch.tensor([1]), torch.tensor([[[0.0, 1.0]]]), ("one",)).save(file)
        ...     load_readings(file).labels
        tensor([1])
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: torch.from_numpy(found[name]) for name in ("images", "labels", "probabilities")}
            return Readings(**arrays, names=tuple(str(name) for name in found["names"]))
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (KeyError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise FileError(f"{path}: not a file of readings: {str(error).splitlines()[0]}") from None


def draw_reading(axes: Any, probabilities: Sequence[float], label: int, name: str) -> None:
    """One classifier's probabilities as bars, the largest with its number; the bar of the true class has a colour of its own."""
    classes = range(len(probabilities))
    axes.bar(classes, probabilities, color=[RIGHT if k == label else WRONG for k in classes])
    axes.set_ylim(0.0, 1.15)
    axes.set_yticks((0.0, 0.5, 1.0), ("0", "½", "1"))
    axes.set_xticks(classes)
    most = max(classes, key=probabilities.__getitem__)
    axes.annotate(f"{probabilities[most]:.0%}", (most, probabilities[most]), (0, 1), textcoords="offset points", ha="center", fontsize=9)
    axes.set_title(name.replace(", ", ",\n", 1), loc="left", fontsize="small")
    bare(axes)

"""What ``vae-fast mog --data`` names: a file of points, an image set, or a toy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_fast import data
from vae_fast.data.toys import TOYS, toy
from vae_fast.errors import FileError, RunError

IMAGES = ("digits", "mnist", "frey")
TOY_POINTS = 10_000
_TEST_SEED = 20061001  # of a toy's test points, so far from any seed of training points that the two are never the same


@dataclass(frozen=True)
class Points:
    """Points to fit and points to test on.

    Attributes:
        name: for titles and lines.
        train: ``(n, d)``, floating and finite.
        test: ``(m, d)``, or None.
        image_shape: ``(height, width)`` if each point is an image with values in [0, 1].
        toy: the name of the toy they are, or the empty string.
    """

    name: str
    train: Tensor
    test: Tensor | None
    image_shape: tuple[int, int] | None = None
    toy: str = ""


def read(source: str, dtype: torch.dtype, *, data_dir: Path | None, n: int | None, holdout: float, seed: int) -> Points:
    """The points that ``source`` names.

    Args:
        source: an image set, a toy or a ``.npy`` file; a name that is both is the set or the toy (``./digits`` is the file).
        dtype: what they are read as.
        data_dir: see :func:`vae_fast.data.load`.
        n: number of a toy's training points, and of its test points; None is :data:`TOY_POINTS`.
        holdout: share of a file's rows that are kept for the test.
        seed: of a toy's points and of the rows that are held out.

    Raises:
        FileError, RunError: naming the file or the name and why it cannot be used.
    """
    if n is not None and source not in TOYS:
        raise RunError("--points: goes with a toy only")
    if holdout and source in (*IMAGES, *TOYS):
        raise RunError(f"--holdout: goes with FILE.npy only; {source} has test points")
    if source in IMAGES:
        images = data.load(source, data_dir)
        train, test = (_pixels(x, dtype) for x in (images.train, images.test))
        return Points(source, train, test, images.image_shape)
    if source in TOYS:
        n = TOY_POINTS if n is None else n
        return Points(source, toy(source, n, seed).to(dtype), toy(source, n, _TEST_SEED + seed).to(dtype), toy=source)
    path = Path(source)
    if not path.exists() and not path.suffix and path.name == source:
        raise RunError(f"--data {source}: neither a file nor one of {', '.join((*IMAGES, *TOYS))}")
    x = torch.from_numpy(_finite(path, read_npy(path), dtype))
    held = round(holdout * len(x))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)) if held else torch.arange(len(x))
    train, test = x[order[held:].sort().values], x[order[:held].sort().values]
    return Points(path.name, train, test if held else None)


def _pixels(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) / 255.0 if x.dtype == torch.uint8 else x.to(dtype)


def read_npy(path: Path) -> np.ndarray[Any, Any]:
    """A table of real numbers ``(n, d)``, or ``(n,)`` for points on the line; what is pickled is never loaded.

    Raises:
        FileError: naming the file and why it cannot be used.
    """
    if not path.exists():
        raise FileError(f"{path}: no such file")
    if not path.is_file():
        raise FileError(f"{path}: is a directory; --data names a .npy file")
    try:
        x = data.read_npy(path)
    except FileError as error:
        if "Python objects" in str(error):
            raise FileError(f"{path}: holds pickled Python objects, which are not loaded; save a plain array of numbers") from None
        raise
    if x.dtype.kind not in "fiu":
        raise FileError(f"{path}: dtype {x.dtype}: expected real numbers")
    if x.ndim not in (1, 2) or 0 in x.shape:
        raise FileError(f"{path}: shape {x.shape}: expected (n, d), one point per row, or (n,)")
    return x.reshape(len(x), -1)


def _finite(path: Path, x: np.ndarray[Any, Any], dtype: torch.dtype) -> np.ndarray[Any, Any]:
    with np.errstate(over="ignore"):
        out = np.array(x, dtype=np.float32 if dtype == torch.float32 else np.float64, order="C")
    bad = np.flatnonzero(~np.isfinite(out).all(axis=1))
    if not len(bad):
        return out
    row = bad[0]
    if np.isfinite(x[row]).all():
        raise FileError(f"{path}: row {row} is too large for float32; give --dtype float64")
    raise FileError(f"{path}: {len(bad):,} of {len(x):,} rows hold NaN or infinity, the first is row {row}")

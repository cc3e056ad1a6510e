"""What ``vae-fast mog --data`` names: a file of points, an image set, or a toy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_fast import data
from vae_fast._world import World
from vae_fast.data.toys import TOYS, toy
from vae_fast.errors import FileError, RunError
from vae_fast.models._mixture_data import Chosen

IMAGES = ("digits", "mnist", "frey")
TOY_POINTS = 10_000
_AT_ONCE = 2**22  # numbers of a file that are looked at together
_TEST_SEED = 20061001  # of a toy's test points, so far from any seed of training points that the two are never the same


Rows = Tensor | np.ndarray[Any, Any] | Chosen


@dataclass(frozen=True)
class Points:
    """Points to fit and points to test on.

    Attributes:
        name: for titles and lines.
        train: ``(n, d)``, finite: a tensor, or of a file the rows as they are there, mapped.
        test: ``(m, d)``, like ``train``, or None.
        image_shape: ``(height, width)`` if each point is an image with values in [0, 1].
        toy: the name of the toy they are, or the empty string.
    """

    name: str
    train: Rows
    test: Rows | None
    image_shape: tuple[int, int] | None = None
    toy: str = ""


def read(
    source: str,
    dtype: torch.dtype,
    *,
    data_dir: Path | None,
    n: int | None,
    holdout: float,
    seed: int,
    world: World | None = None,
) -> Points:
    """The points that ``source`` names.

    Args:
        source: an image set, a toy or a ``.npy`` file; a name that is both is the set or the toy (``./digits`` is the file).
        dtype: what they are read as.
        data_dir: see :func:`vae_fast.data.load`.
        n: number of a toy's training points, and of its test points; None is :data:`TOY_POINTS`.
        holdout: share of a file's rows that are kept for the test.
        seed: of a toy's points and of the rows that are held out.
        world: the processes that look through a file together, each at its part.

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
    x = read_npy(path)
    _check_finite(path, x, dtype, world or World())
    held = round(holdout * len(x))
    if not held:
        return Points(path.name, x, None)
    is_test = torch.zeros(len(x), dtype=torch.bool)
    is_test[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:held]] = True
    parts = [Chosen(x, mask.nonzero().flatten().numpy()) for mask in (~is_test, is_test)]
    return Points(path.name, parts[0], parts[1])


def some(rows: Rows, dtype: torch.dtype, most: int = 100_000) -> Tensor:
    """At most ``most`` rows, evenly spread, as a tensor: for a picture."""
    if isinstance(rows, Tensor):
        return rows
    step = 1 + (len(rows) - 1) // most
    return torch.from_numpy(np.array(rows[::step], dtype=np.float32 if dtype == torch.float32 else np.float64))


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


def _check_finite(path: Path, x: np.ndarray[Any, Any], dtype: torch.dtype, world: World) -> None:
    """Refuse NaN, infinity and what is out of the range of ``dtype``; the file is read in pieces and once."""
    if x.dtype.kind in "iu":
        return

    def look() -> tuple[int, int | None, bool]:
        """How many rows of this process's part are bad, the first of them, and whether that is too large only."""
        bad, first, large = 0, None, False
        most = np.finfo(np.float32 if dtype == torch.float32 else np.float64).max
        step = max(1, _AT_ONCE // x.shape[1])
        pieces = -(-len(x) // step)
        for i in range(pieces * world.rank // world.size, pieces * (world.rank + 1) // world.size):
            piece = np.asarray(x[i * step : (i + 1) * step])
            good = (np.abs(piece) <= most).all(axis=1)
            if not good.all():
                bad += int((~good).sum())
                row = int((~good).argmax())
                first, large = (i * step + row, bool(np.isfinite(piece[row]).all())) if first is None else (first, large)
        return bad, first, large

    found = [part for part in world.gather(world.together(look)) if part[1] is not None]
    if found and found[0][2]:
        raise FileError(f"{path}: row {found[0][1]} is too large for float32; give --dtype float64")
    if found:
        raise FileError(f"{path}: {sum(p[0] for p in found):,} of {len(x):,} rows hold NaN or infinity, the first is row {found[0][1]}")

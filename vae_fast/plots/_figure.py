"""What every picture shares: how a figure is made, how it is written, its colours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vae_fast._optional import optional_import
from vae_fast.files import atomic_write

PathLike = str | os.PathLike[str]
INK, QUIET, GRID = "#222222", "#8a8a8a", "#e6e6e6"
BLUE, ORANGE = "#1f5fa8", "#d9772b"


def require() -> None:
    """Say so now, not after the training, if pictures cannot be drawn.

    Raises:
        MissingExtraError: without matplotlib.
    """
    optional_import("matplotlib.figure", "matplotlib", "drawing pictures (or give --no-pictures)")


def literal(text: str) -> str:
    r"""A text that pictures show as it is: matplotlib would read what stands between two dollar signs as mathematics, or fail to.

    Example:
        >>> print(literal("a$$b"))
        a\$\$b
    """
    return text.encode(errors="backslashreplace").decode().replace("$", r"\$")


def new_figure(width: float, height: float) -> Any:
    """A figure of so many inches, laid out so that nothing overlaps."""
    return optional_import("matplotlib.figure", "matplotlib", "drawing pictures").Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: PathLike) -> None:
    """Write a figure as a PNG, in one step."""
    with atomic_write(Path(path)) as file:
        figure.savefig(file, format="png", dpi=150)


def bare(axes: Any) -> None:
    """Leave the left and the lower edge only."""
    axes.spines[["top", "right"]].set_visible(False)

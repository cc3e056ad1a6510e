"""Packages that only some parts need."""

from __future__ import annotations

import importlib
from types import ModuleType

from vae_fast.errors import MissingExtraError


def optional_import(module: str, package: str, purpose: str) -> ModuleType:
    """Import a module of an optional package, or say which package is missing, for what, and how to install it.

    Args:
        module: dotted name, e.g. ``"matplotlib.figure"``.
        package: its name on PyPI.
        purpose: what it is needed for, as the subject of a sentence.

    Raises:
        MissingExtraError: if the package is not installed.

    Example:
        >>> optional_import("math", "python", "arithmetic").floor(1.5)
        1
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != module.split(".")[0]:
            raise  # the package is there and one of its own dependencies is not
        message = f"{purpose} needs {package}: install it with `pip install vae_fast[train]` or `pip install {package}`"
        raise MissingExtraError(message) from None

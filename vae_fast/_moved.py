"""Modules that have moved: for one release their old paths lead to the same module, with a DeprecationWarning that names the new one.

The finder stands first in ``sys.meta_path``, so that a file which an earlier release left behind at an old path is not taken for it.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: Where each public module of 0.1 is now.
MOVED = {
    "vae_fast.checkpoint": "vae_fast.training.checkpoint",
    "vae_fast.distributed": "vae_fast.training.distributed",
    "vae_fast.toys": "vae_fast.data.toys",
}

_BETWEEN = ("importlib._bootstrap", "importlib._bootstrap_external", "_frozen_importlib", "_frozen_importlib_external")


class _Moved(MetaPathFinder, Loader):
    """Finds and loads the modules of :data:`MOVED`."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = MOVED[spec.name]
        warnings.warn(f"{spec.name} has moved: import {new}", DeprecationWarning, stacklevel=_importers_level())
        module = importlib.import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:  # now that of the old path
            module.__spec__ = module.__spec__.loader_state  # the module has run where it is, and is found there again


def _importers_level() -> int:
    """The ``stacklevel`` of the line that imports, so that the warning is shown where it can be mended: ``warnings`` counts no frames of
    the import system, here none of :func:`importlib.import_module` and of ``vae_fast.__getattr__`` either.
    """
    frame, level = sys._getframe(2), 2
    while frame.f_back is not None and frame.f_globals.get("__name__") in (*_BETWEEN, "importlib", "vae_fast"):
        level += frame.f_globals["__name__"] not in _BETWEEN
        frame = frame.f_back
    return level


def install() -> None:
    """Put the finder in its place, once."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Moved())

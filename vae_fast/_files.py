"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vae_fast.errors import FileError


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the name ``path`` only once it is complete and on the disk.

    The bytes go to a hidden file in the same directory, are synced, and replace ``path`` in one step. If anything
    fails, the hidden file is removed and what was at ``path`` before is untouched.

    Raises:
        FileError: naming ``path``, if it cannot be written (full disk, no permission, ...).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_write(Path(folder) / "note.txt") as file:
        ...         _ = file.write(b"whole")
        ...     (Path(folder) / "note.txt").read_text()
        'whole'
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    # The rename itself reaches the disk with its directory. Not every system lets a directory be synced.
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write a plain value as indented JSON, atomically."""
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())

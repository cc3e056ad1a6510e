"""Files that are there whole or not at all, and files that are files."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vae_fast.errors import FileError

_NO_LINK = os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the name ``path`` only once it is complete and on the disk.

    The bytes go to a hidden file in the same directory, are synced, and replace ``path`` in one step. If anything
    fails, the hidden file is removed and what was at ``path`` before is untouched. The hidden file is made by this call, under a
    name that cannot be foreseen, so no link planted there is followed. The file's permissions are those of the one it replaces,
    else those that the umask leaves. Where ``path`` is a link, the link is replaced, not the file it points to.

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
    part = hidden_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666), "w+b") as file:
            _take_permissions(part, path)
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


def hidden_name(path: Path) -> Path:
    """A name beside ``path`` for a file on its way there; :func:`is_leftover_of` knows it again.

    Example:
        >>> hidden_name(Path("run/a.pt")).parent
        PosixPath('run')
    """
    return path.with_name(f".{path.name[:48]}.{secrets.token_hex(8)}.tmp")  # a name has 255 bytes at most, a character up to 4


def is_leftover_of(name: str, path: Path) -> bool:
    """Whether ``name`` is one that a process killed while it wrote ``path`` leaves behind; of earlier releases too.

    Example:
        >>> is_leftover_of(hidden_name(Path("a.pt")).name, Path("a.pt")), is_leftover_of(".x.tmp", Path("x"))
        (True, False)
    """
    begin, end = f".{path.name[:48]}.", ".tmp"
    middle = name[len(begin) : -len(end)]
    return name.startswith(begin) and name.endswith(end) and middle != "" and set(middle) <= set("0123456789abcdef")


def _take_permissions(part: Path, path: Path) -> None:
    try:
        old = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISREG(old.st_mode):
        part.chmod(stat.S_IMODE(old.st_mode) & 0o777)


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


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[IO[bytes]]:
    """A file to be read; never a pipe or a device, on which a read may wait for ever or never end.

    Raises:
        FileError: naming ``path``, if it is not there, not a file, or a read fails.

    Example:
        >>> with open_regular(Path("/dev/null")):  # doctest: +IGNORE_EXCEPTION_DETAIL
        ...     pass
        Traceback (most recent call last):
        FileError: /dev/null: not a file
    """
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            raise FileError(f"{path}: cannot be read: {'Is a directory' if stat.S_ISDIR(kind) else 'not a file'}")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from None

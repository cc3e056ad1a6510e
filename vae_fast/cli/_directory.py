"""The directory of a run: whose it is, and that one run at a time writes there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vae_fast.errors import FileError
from vae_fast.files import is_leftover_of
from vae_fast.training import distributed

#: The mark of a run's directory; it names the files that are the run's, and the run that writes there holds a lock on it.
MARKER = ".vae_fast-run"
_FORMAT = "vae_fast.run"
#: What each command writes. Any of the results is the sign that a directory holds a run.
FILES = {
    "train": (
        *("checkpoint.pt", "checkpoint.previous.pt", "config.json", "metrics.csv", "results.json"),
        *("loss.png", "reconstructions.png", "samples.png", "latent.png"),
    ),
    "mog": (
        *("mixture.npz", "fit.pt", "config.json", "metrics.csv", "results.json"),
        *("log_likelihood.png", "density.png", "means.png", "samples.png"),
    ),
}
RESULTS = ("checkpoint.pt", "mixture.npz")
_NAMES = frozenset(name for names in FILES.values() for name in names)
_MOST_BYTES = 2**20  # of a marker or a config.json


def begun(out: Path, *files: str) -> bool:
    """Whether an earlier attempt of this very job has come to one of these checkpoints in ``out``: a run of before is not taken up."""
    config = _json(out / "config.json")
    return bool(config) and config.get("job") == distributed.job() and any((out / name).is_file() for name in files)


@contextlib.contextmanager
def run_directory(out: Path, command: str, *, keep: bool = False, overwrite: bool = False, resumable: bool = False) -> Iterator[None]:
    """Make a directory this run's own for as long as the block lasts, cleared of what an earlier run left.

    A directory is a run's if it bears the mark, which says which files are the run's, or, of earlier releases, a config.json that names
    vae_fast. Nothing else that has the name of one of our files is touched. The lock goes with the process, however that ends.

    Args:
        out: the directory; made if it is not there.
        command: whose files are to be written, see :data:`FILES`.
        keep: True leaves the run's files where they are, for one that is resumed: its checkpoint has been read.
        overwrite: True replaces the run that is there.
        resumable: whether the advice may be to resume it.

    Raises:
        FileError: if ``out`` is a file, holds a run, holds files that are not a run's, or another run is writing there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with run_directory(Path(folder) / "run", "train"):
        ...         sorted(os.listdir(Path(folder) / "run"))
        ['.vae_fast-run']
    """
    if os.path.lexists(out) and not out.is_dir():
        raise FileError(f"{out}: is a file; --out names a directory")
    _refuse(out, command, _owned(out, keep), keep=keep, overwrite=overwrite, resumable=resumable)  # before anything is made
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out / MARKER, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        _lock(handle, out)
        owned = _owned(out, keep)  # again: another run may have come and gone since
        _refuse(out, command, owned, keep=keep, overwrite=overwrite, resumable=resumable)
        _mark(handle, {*FILES[command], *owned})
        for name in os.listdir(out):
            if (name in owned and not keep) or any(is_leftover_of(name, out / known) for known in owned):
                (out / name).unlink()
        _mark(handle, {*FILES[command], *(owned if keep else ())})
        yield
    finally:
        os.close(handle)


def _mark(handle: int, files: set[str]) -> None:
    text = (json.dumps({"format": _FORMAT, "files": sorted(files)}) + "\n").encode()
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, text)
    os.ftruncate(handle, len(text))


def _refuse(out: Path, command: str, owned: frozenset[str], *, keep: bool, overwrite: bool, resumable: bool) -> None:
    strange = [name for name in sorted({*FILES[command], *RESULTS} - owned) if os.path.lexists(out / name)]
    if strange:
        raise FileError(f"{out}: {', '.join(strange)}: not written by a run here; move it away, or choose another --out")
    if any((out / name).exists() for name in RESULTS) and not (keep or overwrite):
        advice = "continue it with --resume, " if resumable else ""
        raise FileError(f"{out}: already holds a run; {advice}replace it with --overwrite, or choose another --out")


def _owned(out: Path, keep: bool) -> frozenset[str]:
    """The names there that are a run's."""
    marker = out / MARKER
    if os.path.lexists(marker) and not _is_empty(marker):
        mark = _json(marker)
        files = mark.get("files") if mark.get("format") == _FORMAT else None
        if not isinstance(files, list):
            raise FileError(f"{marker}: not the mark of a run of vae-fast; move it away, or choose another --out")
        return _NAMES.intersection(name for name in files if isinstance(name, str))
    if isinstance(_json(out / "config.json").get("vae_fast"), str):
        return _NAMES  # an earlier release's
    return frozenset(("checkpoint.pt", "checkpoint.previous.pt") if keep else ())


def _is_empty(marker: Path) -> bool:
    """Whether a run has made it and has not written it yet: this one, or one that was killed in between."""
    status = marker.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def _json(path: Path) -> dict[str, Any]:
    """What a small file holds; nothing, if it is no such file."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
            return {}
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _lock(handle: int, out: Path) -> None:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            raise FileError(f"{out}: another run is writing there; wait until it ends, or choose another --out") from None
        print(f"vae-fast: {out}: no lock can be had there ({error.strerror}): see that no other run writes to it", file=sys.stderr)

"""What the commands share: options that are checked as they are read, the device, and the directory of a run."""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vae_fast._files import atomic_write
from vae_fast.errors import FileError, RunError


class Parser(argparse.ArgumentParser):
    """One line per error, the way the rest of the command reports them."""

    def error(self, message: str) -> Any:
        """Print the line and leave with exit code 2."""
        self.exit(2, f"vae-fast: error: {message} (see {self.prog} --help)\n")


def number(kind: type, low: float, open_below: bool = False) -> Callable[[str], Any]:
    """A reader of one number that is finite and at least (above) ``low``, for ``type=`` of an option."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low < value if open_below else low <= value) or value == math.inf:
            what = "an integer" if kind is int else "a finite number"
            bound = f"above {low:g}" if open_below else f"of at least {low:g}"
            raise argparse.ArgumentTypeError(f"{text!r}: expected {what} {bound}")
        return value

    return parse


def machine_options(command: argparse.ArgumentParser) -> None:
    """``--device``, ``--threads`` and ``--no-pictures``."""
    command.add_argument("--device", metavar="NAME", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    command.add_argument("--threads", metavar="N", type=number(int, 1), help="CPU threads (default: torch's choice)")
    command.add_argument("--no-pictures", action="store_true", help="write no PNG files (matplotlib is not needed then)")


def usable_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        RunError: if it is not there or not one the kernels run on.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"--device {name}: cannot be used here: {str(error).splitlines()[0]}") from None
    if device.type not in ("cpu", "cuda"):
        raise RunError(f"--device {name}: expected cpu, cuda or cuda:N")
    return device


#: Any of these files in a directory is the sign that it holds a run, of one command or another.
RESULTS = ("checkpoint.pt", "mixture.npz")


def prepare(out: Path, written: Sequence[str], *, keep: bool = False, overwrite: bool = False, resumable: bool = False) -> None:
    """Make the directory of a run ready: refuse to write over a run, clear what an earlier one left behind.

    Args:
        out: the directory; made if it is not there.
        written: the files of a run.
        keep: True leaves them where they are, for a run that is resumed.
        overwrite: True replaces the run that is there.
        resumable: whether the advice may be to resume it.

    Raises:
        FileError: if ``out`` is a file or holds a run.
    """
    if out.exists() and not out.is_dir():
        raise FileError(f"{out}: is a file; --out names a directory")
    if any((out / name).exists() for name in RESULTS) and not (keep or overwrite):
        advice = "continue it with --resume, " if resumable else ""
        raise FileError(f"{out}: already holds a run; {advice}replace it with --overwrite, or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.glob(".*.tmp"):  # of a process that was killed while writing
        stale.unlink()
    if not keep:
        for name in {*written, *RESULTS}:
            (out / name).unlink(missing_ok=True)


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write records as CSV, in one step."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())

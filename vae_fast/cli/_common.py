"""What the commands share: options that are checked as they are read, the device, and tables."""

from __future__ import annotations

import argparse
import csv
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vae_fast import plots
from vae_fast.errors import RunError
from vae_fast.files import atomic_write


class Parser(argparse.ArgumentParser):
    """One line per error, the way the rest of the command reports them."""

    def error(self, message: str) -> Any:
        """Print the line and leave with exit code 2."""
        self.exit(2, f"vae-fast: error: {message} (see {self.prog} --help)\n")


#: Most threads that are ever of use; the thread library ends the process if it cannot start as many as it was asked for.
MOST_THREADS = 16 * (os.cpu_count() or 1)
#: Seeds of torch's generators are 64 bits; the sign is left free.
MOST_SEED = 2**63 - 1
MOST_SECONDS = 10**9  # what a time-out can be, for every library that is told it


def number(kind: type, low: float, most: float = math.inf, *, open_below: bool = False) -> Callable[[str], Any]:
    """A reader of one number that is finite, at least (above) ``low`` and at most ``most``, for ``type=`` of an option."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low < value if open_below else low <= value) or value > most or value == math.inf:
            what = "an integer" if kind is int else "a finite number"
            bound = f"above {low:g}" if open_below else f"of at least {low:g}"
            bound += f" and at most {most:,}" if most < math.inf else ""
            raise argparse.ArgumentTypeError(f"{text!r:.60}: expected {what} {bound}")
        return value

    return parse


def named_path(text: str) -> Path:
    """A reader of a path. An empty one would be the working directory, which nobody has named."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a name")
    return Path(text)


def machine_options(command: argparse.ArgumentParser) -> None:
    """``--device``, ``--threads`` and ``--no-pictures``."""
    command.add_argument("--device", metavar="NAME", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    command.add_argument("--threads", metavar="N", type=number(int, 1, MOST_THREADS), help="CPU threads (default: torch's choice)")
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


def machine_for(args: argparse.Namespace, *, pictures: bool) -> torch.device:
    """The device that ``--device`` names, made the current one, and the threads of ``--threads``.

    Raises:
        RunError: if the device cannot be used.
        MissingExtraError: if pictures are to be drawn and matplotlib is not there.
    """
    device = usable_device(args.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if pictures:
        plots.require()
    return device


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write records as CSV, in one step."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())

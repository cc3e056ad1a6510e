"""The command ``vae-fast``."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence

import torch

from vae_fast import __version__, _as_command, training
from vae_fast.cli import bench, explore, mog, train
from vae_fast.cli._common import Parser
from vae_fast.cli.train import DEFAULTS
from vae_fast.errors import RunError, VaeFastError
from vae_fast.training import distributed

__all__ = ["DEFAULTS", "main", "training"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for anything the user can repair, 130 when interrupted.

    Example:
        >>> main(["train", "--dataset", "digits", "--epochs", "0"])
        2
    """
    _as_command.imported()
    advice = ""
    try:
        args = _parser().parse_args(argv)
        advice = f"; {args.interrupted}"
        return _finish(int(args.run(args)))
    except SystemExit as stop:
        if isinstance(stop, VaeFastError) or stop.code not in (0, 2):
            raise
        return _finish(int(stop.code or 0))  # argparse has printed help, version or one error line
    except KeyboardInterrupt:
        print(f"vae-fast: interrupted{advice}", file=sys.stderr)
        return 130
    except (VaeFastError, OSError, MemoryError) as error:
        failure: BaseException = error
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        failure = error
    if _is_out_of_memory(failure):
        failure = RunError(f"there is not enough memory: {_said(failure)}")
    _as_command.say_error(failure)
    distributed.let_others_speak()
    return _finish(2)


def _is_out_of_memory(error: BaseException) -> bool:
    """torch says it on the CPU in a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def _said(error: BaseException) -> str:
    """The first line, less the place in torch's source."""
    words = (str(error).splitlines() or ["out of memory"])[0]
    return re.sub(r"^\[enforce fail at .*?\] .*?\. ", "", words)


def _finish(code: int) -> int:
    """The exit code, once what was printed has gone where it goes: a reader that is gone is no reason for a traceback at the very end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _parser() -> argparse.ArgumentParser:
    description = "Fused kernels for variational autoencoders and mixtures of Gaussians."
    parser = Parser(prog="vae-fast", description=description)
    parser.add_argument("--version", action="version", version=f"vae_fast {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    train.add_command(commands)
    explore.add_command(commands)
    mog.add_command(commands)
    bench.add_command(commands)
    return parser

"""The command ``vae-fast``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from vae_fast import __version__, distributed, training
from vae_fast.cli import bench, explore, mog, train
from vae_fast.cli._common import Parser
from vae_fast.cli.train import DEFAULTS
from vae_fast.errors import VaeFastError

__all__ = ["DEFAULTS", "main", "training"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for anything the user can repair, 130 when interrupted.

    Example:
        >>> main(["train", "--dataset", "digits", "--epochs", "0"])
        2
    """
    parser = _parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed help, version or one error line
        return int(stop.code or 0)
    try:
        return int(args.run(args))
    except (VaeFastError, OSError, torch.OutOfMemoryError) as error:
        print(f"vae-fast: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        distributed.let_others_speak()
        return 2
    except KeyboardInterrupt:
        print(f"vae-fast: interrupted; {args.interrupted}", file=sys.stderr)
        return 130


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

"""What has to be in place before torch is imported, if this process is the command ``vae-fast``: errors and Ctrl-C as one line.

The command's own ``main`` comes after all imports, and until then Ctrl-C or a bad ``VAE_FAST_BACKEND`` would print a traceback. In any
other process that imports vae_fast, nothing happens here.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from types import FrameType, TracebackType

from vae_fast.errors import VaeFastError


def is_command() -> bool:
    """Whether this process is ``vae-fast``, or ``python -m vae_fast`` that is importing its package.

    Example:
        >>> is_command()
        False
    """
    first = sys.argv[0] if sys.argv else ""
    if first == "-m":  # what runpy puts there until it has found the module
        return "-mvae_fast" in sys.orig_argv or ("-m", "vae_fast") in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    return os.path.basename(first) in ("vae-fast", "vae-fast.exe", "vae-fast-script.py")


def begin() -> None:
    """Standard streams that can be written to, Ctrl-C and the package's errors as one line."""
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:  # closed by the caller: the next file to be opened would take its number, and what is printed
            os.open(os.devnull, mode)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115  for the life of the process
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name need not be text
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    sys.excepthook = _one_line


def imported() -> None:
    """Everything is imported: Ctrl-C is a KeyboardInterrupt again.

    Example:
        >>> imported()
    """
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def say_error(error: BaseException) -> None:
    """The line on stderr, if there is anyone to read it."""
    with contextlib.suppress(OSError):
        print(f"vae-fast: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)


def _interrupted(_: int, __: FrameType | None) -> None:
    # Not an exception: it would come up inside somebody's import, which may take it for a missing package.
    with contextlib.suppress(OSError):
        os.write(2, b"vae-fast: interrupted\n")
    os._exit(130)


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, VaeFastError):
        say_error(error)
        raise SystemExit(2)
    sys.__excepthook__(kind, error, trace)


if is_command():
    begin()

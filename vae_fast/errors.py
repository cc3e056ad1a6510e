"""What a user may catch: every error and warning class that the package raises on purpose.

All errors but :class:`Terminated` are a :class:`VaeFastError`, and each is also the built-in error it is a kind of. Their messages are one
line that names what cannot be used, says why and what to do; the command line prints it and ends with exit code 2. A wrong argument of a
function is a plain ``ValueError`` or ``TypeError``.

Example:
    >>> from vae_fast.training import checkpoint
    >>> try:
    ...     checkpoint.load("nowhere.pt")
    ... except FileError as error:
    ...     print(error)
    nowhere.pt: cannot be read: No such file or directory
"""

from __future__ import annotations

import signal

__all__ = [
    "ConvergenceWarning",
    "DeadComponentWarning",
    "DivergedError",
    "ExtensionError",
    "FileError",
    "MissingExtraError",
    "NotFittedError",
    "RanDryError",
    "RunError",
    "SettingError",
    "SingularCovarianceError",
    "Terminated",
    "UnknownVersionError",
    "VaeFastError",
]


class VaeFastError(Exception):
    """Base of the errors below."""


class FileError(VaeFastError, ValueError):
    """A file or directory that cannot be used; the message names it, says why and what to do."""


class MissingExtraError(VaeFastError, ImportError):
    """An optional package that is needed here is not installed."""


class ExtensionError(VaeFastError, ImportError):
    """``VAE_FAST_BACKEND=compiled`` asks for the compiled extension, and it is not there or does not load."""


class RanDryError(VaeFastError, RuntimeError):
    """Of the benchmarks: the device had caught up with the host before all was enqueued, however long it was kept busy."""


class SettingError(VaeFastError, ValueError):
    """An environment variable that holds none of the values it may have."""


class DivergedError(VaeFastError, ArithmeticError):
    """The training loss is no longer a finite number."""


class RunError(VaeFastError, RuntimeError):
    """A training run that cannot start as it was asked for, or that lost one of its processes."""


class UnknownVersionError(VaeFastError, RuntimeError):
    """A package to be patched is of a version that was not tested."""


class NotFittedError(VaeFastError, ValueError, AttributeError):
    """A result of a fit was asked for before there was one."""


class SingularCovarianceError(VaeFastError, ValueError):
    """A covariance that is not positive definite; the message names the components and says what to do."""


class Terminated(SystemExit):
    """SIGTERM came, the checkpoint is written, the process ends with 143; the run is not finished."""

    def __init__(self) -> None:
        """Exit code 128 + SIGTERM."""
        super().__init__(128 + signal.SIGTERM)


class ConvergenceWarning(UserWarning):
    """A fit that stopped at its largest number of iterations."""


class DeadComponentWarning(UserWarning):
    """Components that account for less than a tenth of a sample."""

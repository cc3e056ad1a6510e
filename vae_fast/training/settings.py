"""The settings of :func:`vae_fast.training.fit` in five groups: each a frozen dataclass that checks its own when it is made.

A field has the same name, meaning and default in its group as it has as a keyword of ``fit``: there is one list of settings, here. A group
can be made once, named, and handed to many runs.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from vae_fast.functional import _arguments as check
from vae_fast.training.distributed import TIMEOUT

T = TypeVar("T")
#: A row of a history.
Record = dict[str, float]
Transform = Callable[[Tensor], Tensor]
Schedule = Callable[[int], float]


@dataclass(frozen=True, kw_only=True)
class Batches:
    """How the rows of the data become steps.

    Attributes:
        batch_size: rows per step, of all processes together.
        drop_last: True: ``n // batch_size`` batches per epoch, the rest of the shuffled rows is left
            out of that epoch, as in the thesis that :class:`vae_fast.models.MLPVAE` is from. False: the last batch is smaller, and its
            loss counts by its size.
        seed: of the generator that shuffles. The noise comes from torch's own generator: call ``torch.manual_seed`` for
            it.
        accumulate: number of pieces each batch is computed in, one after the other: for batches that do not fit.
        transform: applied to each batch (of ``valid`` too) on the model's device, as :func:`vae_fast.data.binarized`.
        check_data: look at every value of ``train`` and ``valid`` once, before the first step: in [0, 1] if the model says that its
            likelihood is Bernoulli (an attribute ``likelihood``, as :class:`vae_fast.models.VAE` has), else finite. With ``transform``,
            which may scale them, finite. Bytes and bools need no look. Mapped data are read once for it, each process its part.

    Raises:
        TypeError, ValueError: naming the field, what came and what was expected.

    Example:
        >>> Batches(batch_size=512, drop_last=False).batch_size
        512
    """

    batch_size: int = 100
    drop_last: bool = True
    seed: int = 0
    accumulate: int = 1
    transform: Transform | None = None
    check_data: bool = True

    def __post_init__(self) -> None:
        """Check the fields."""
        check.positive_int("batch_size", self.batch_size)
        check.flag("drop_last", self.drop_last)
        check.seed("seed", self.seed)
        check.positive_int("accumulate", self.accumulate)
        if self.transform is not None and not callable(self.transform):
            raise TypeError(f"transform: expected a function of a batch, got {type(self.transform).__name__}")
        check.flag("check_data", self.check_data)


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """What a step does to the weights.

    Attributes:
        lr: learning rate of Adam (betas 0.9 and 0.999, epsilon 1e-8); not used with ``optimizer``.
        optimizer: another optimizer over the model's parameters.
        schedule: ``schedule(step)`` is the factor of the learning rate at each step of the run, counted from 0; see
            :func:`vae_fast.training.warmup`. A resumed run goes on with it: it has no state. (A scheduler of torch's own may be stepped
            in ``callbacks`` instead, with ``optimizer``.)
        max_grad_norm: scale the gradient down to this norm where it is longer (``torch.nn.utils.clip_grad_norm_``).

    Raises:
        TypeError, ValueError: naming the field, what came and what was expected.

    Example:
        >>> Optimization(lr=3e-4, max_grad_norm=1.0).max_grad_norm
        1.0
    """

    lr: float = 1e-3
    optimizer: Optimizer | None = None
    schedule: Schedule | None = None
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        check.real("lr", self.lr, 0.0)
        if self.optimizer is not None and not hasattr(self.optimizer, "param_groups"):
            raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(self.optimizer).__name__}")
        if self.schedule is not None and not callable(self.schedule):
            raise TypeError(f"schedule={check.shown(self.schedule)}: expected a function of the step, e.g. training.warmup(1000)")
        if self.max_grad_norm is not None:
            check.real("max_grad_norm", self.max_grad_norm, 0.0)
            if self.max_grad_norm == 0.0:
                raise ValueError("max_grad_norm=0.0: expected a positive number, or None")


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """What is kept of a run, and how it goes on.

    Attributes:
        checkpoint: file that is replaced after every epoch, see :mod:`vae_fast.training.checkpoint`; None keeps nothing.
        resume: continue from ``checkpoint``: on the CPU, with the same number of threads and processes, to the same bits
            as an unbroken run. torch's random number generators are set to what they were. With another number of
            processes the batches are the same and the noise is drawn anew; a broken newest checkpoint gives way to the one
            before; both are said on stderr.
        config: plain values kept in the checkpoint; a resumed run must give the same. ``batch_size``, ``lr``,
            ``drop_last``, ``seed``, ``amp``, the optimizer's type and ``n`` are always compared.
        checkpoint_every: also write ``checkpoint`` after every so many steps.
        keep_previous: keep the checkpoint before the newest too; None: under ``torchrun`` and with ``checkpoint_every``.

    Raises:
        TypeError, ValueError: naming the field, what came and what was expected.

    Example:
        >>> Checkpoints(resume=True)
        Traceback (most recent call last):
        ValueError: resume=True: expected a checkpoint to resume from, got checkpoint=None
    """

    checkpoint: str | os.PathLike[str] | None = None
    resume: bool = False
    config: Mapping[str, Any] | None = None
    checkpoint_every: int | None = None
    keep_previous: bool | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        check.flag("resume", self.resume)
        if self.keep_previous is not None:
            check.flag("keep_previous", self.keep_previous)
        if self.config is not None and not isinstance(self.config, Mapping):
            raise TypeError(f"config: expected a mapping of plain values, got {type(self.config).__name__}")
        if self.checkpoint_every is not None:
            check.positive_int("checkpoint_every", self.checkpoint_every)
        if self.checkpoint is None:
            if self.resume:
                raise ValueError("resume=True: expected a checkpoint to resume from, got checkpoint=None")
            if self.checkpoint_every is not None:
                raise ValueError(f"checkpoint_every={self.checkpoint_every}: expected a checkpoint to write, got checkpoint=None")
        elif not isinstance(self.checkpoint, str | os.PathLike):
            raise TypeError(f"checkpoint={check.shown(self.checkpoint)}: expected the name of a file")
        elif Path(self.checkpoint).is_dir():
            raise ValueError(f"checkpoint={str(self.checkpoint)!r}: expected a file name, this is a directory")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """How a step runs on the device that the model is on.

    Attributes:
        amp: ``torch.bfloat16`` runs the model under autocast; None does not. Weights, gradients and the optimizer stay in the model's
            dtype. On the CPU linear layers then use bfloat16 copies of the weights that are cast once per step, whatever ``accumulate``;
            with ``shard`` it is torch's autocast alone.
        capture: on CUDA, record the whole step (gather, network, loss, gradients, clipping, optimizer) as one CUDA graph and replay
            it, with fresh noise; the learning rates become tensors on the device. What cannot be recorded runs as it is, and one line
            on stderr says why. On the CPU nothing is recorded; there the linear layers of any model multiply by the faster of torch's two
            libraries, whatever this is: each shape is tried both ways at its first product, once per process. Which one is taken may
            differ between two runs, where both are as fast, and so may the rounding; a resumed run keeps the choices of its checkpoint.
            ``VAE_FAST_PRODUCTS=blas`` (torch's own) or ``onednn`` fixes it, ``torch.use_deterministic_algorithms(True)`` means torch's
            own. Each process of several chooses for itself.
        resident: False leaves ``train`` where it is, for data that do not fit on the device (or, mapped from a file, in
            memory): each batch is gathered there and moved.

    Raises:
        TypeError, ValueError: naming the field, what came and what was expected.

    Example:
        >>> Hardware(amp=torch.bfloat16).amp
        torch.bfloat16
    """

    amp: torch.dtype | None = None
    capture: bool = True
    resident: bool = True

    def __post_init__(self) -> None:
        """Check the fields."""
        check.one_of("amp", self.amp, (None, torch.bfloat16))
        check.flag("capture", self.capture)
        check.flag("resident", self.resident)


@dataclass(frozen=True, kw_only=True)
class Processes:
    """How a run in several processes, started by ``torchrun``, is divided.

    Attributes:
        distributed: ``"auto"`` or ``"none"``, see :func:`vae_fast.training.distributed.join`.
        shard: True: FSDP2's ``fully_shard`` instead of DistributedDataParallel: each process holds its part of the weights,
            gradients and moments, and ``model`` stays sharded. The checkpoint holds them whole.
        timeout: seconds after which a process that does not answer is given up.

    Raises:
        TypeError, ValueError: naming the field, what came and what was expected.

    Example:
        >>> Processes(shard=True).timeout
        600.0
    """

    distributed: str = "auto"
    shard: bool = False
    timeout: float = TIMEOUT

    def __post_init__(self) -> None:
        """Check the fields."""
        check.one_of("distributed", self.distributed, ("auto", "none"))
        check.flag("shard", self.shard)
        check.real("timeout", self.timeout)
        if not self.timeout > 0.0:
            raise ValueError(f"timeout={self.timeout!r}: expected a number of seconds above 0")


class Keywords(TypedDict, total=False):
    """Every field of the groups as a keyword of :func:`vae_fast.training.fit`, for editors and type checkers."""

    batch_size: int
    drop_last: bool
    seed: int
    accumulate: int
    transform: Transform | None
    check_data: bool
    lr: float
    optimizer: Optimizer | None
    schedule: Schedule | None
    max_grad_norm: float | None
    checkpoint: str | os.PathLike[str] | None
    resume: bool
    config: Mapping[str, Any] | None
    checkpoint_every: int | None
    keep_previous: bool | None
    amp: torch.dtype | None
    capture: bool
    resident: bool
    distributed: str
    shard: bool
    timeout: float


#: The groups by the argument of ``fit`` that takes them, and each group's fields.
GROUPS: dict[str, type[Any]] = {
    "batches": Batches,
    "optimization": Optimization,
    "checkpoints": Checkpoints,
    "hardware": Hardware,
    "processes": Processes,
}
FIELDS = {name: tuple(field.name for field in dataclasses.fields(group)) for name, group in GROUPS.items()}


def check_keywords(given: Mapping[str, object | None], keywords: Mapping[str, object]) -> None:
    """Refuse what is no group, a keyword that no group has, and one that comes beside its group.

    Args:
        given: by the argument's name, the groups that the caller made, or None.
        keywords: the settings that came one by one.

    Raises:
        TypeError: naming the argument, what came and what was expected.

    Example:
        >>> check_keywords({"batches": Batches()}, {"batch_size": 10})
        Traceback (most recent call last):
        TypeError: batch_size=10: given beside batches=Batches(...): expected it in one place, batches=Batches(batch_size=10)
    """
    for name, group in given.items():
        if group is not None and not isinstance(group, GROUPS[name]):
            raise TypeError(f"{name}={check.shown(group)}: expected a training.{GROUPS[name].__name__}, got {type(group).__name__}")
    owner = {field: name for name, fields in FIELDS.items() for field in fields}
    for key, value in keywords.items():
        if key not in owner:
            close = difflib.get_close_matches(key, [*owner, *GROUPS, "valid", "epochs", "callbacks", "progress"], 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise TypeError(f"fit() got an unexpected keyword argument {check.shown(key)}{hint}")
        if given[owner[key]] is not None:
            inside = f"{owner[key]}={GROUPS[owner[key]].__name__}"
            shown = f"{key}={check.shown(value)}"
            raise TypeError(f"{shown}: given beside {inside}(...): expected it in one place, {inside}({shown})")


def group(kind: type[T], given: T | None, keywords: Mapping[str, object]) -> T:
    """The group that the caller made, else one of those keywords that are its fields.

    Example:
        >>> group(Processes, None, {"shard": True, "lr": 0.1})
        Processes(distributed='auto', shard=True, timeout=600.0)
    """
    if given is not None:
        return given
    fields = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{k: v for k, v in keywords.items() if k in fields})

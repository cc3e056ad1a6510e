"""The settings of :func:`vae_fast.training.fit` in five groups, each a frozen dataclass that checks its fields when it is made.

Every field is also a keyword of ``fit``, with the same name, meaning and default: this is the only list of settings. A group can be made
once and used for many runs.
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
        drop_last: True: ``n // batch_size`` batches per epoch; the remaining shuffled rows are left out of that epoch, as in the thesis
            that :class:`vae_fast.models.MLPVAE` is from. False: the last batch is smaller, and its loss is weighted by its size.
        seed: seed of the generator that shuffles the rows. The noise comes from torch's default generator: seed it with
            ``torch.manual_seed``.
        accumulate: number of pieces that each batch is split into (gradient accumulation), for batches that do not fit in memory.
        transform: applied to each batch (of ``valid`` too) on the model's device, for example :func:`vae_fast.data.binarized`.
        check_data: check every value of ``train`` and ``valid`` once, before the first step: values must be what the model's likelihood
            takes (its attribute ``likelihood``, as :class:`vae_fast.models.VAE` has; in [0, 1] for a Bernoulli), or finite if it names
            none. With ``transform``, which may rescale them, finite. uint8 and bool that always fit are not read. Memory-mapped data are
            read once for this; each process reads its part.

    Raises:
        TypeError, ValueError: naming the field, the value given and what was expected.

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
        schedule: ``schedule(step)`` is the factor on the learning rate at each step of the run, counted from 0; see
            :func:`vae_fast.training.warmup`. It has no state, so that a resumed run simply continues it. (A torch scheduler can be
            stepped in ``callbacks`` instead, with ``optimizer``.)
        max_grad_norm: clip the norm of the gradient to this value (``torch.nn.utils.clip_grad_norm_``).

    Raises:
        TypeError, ValueError: naming the field, the value given and what was expected.

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
    """What a run saves, and how it resumes.

    Attributes:
        checkpoint: file that is replaced after every epoch, see :mod:`vae_fast.training.checkpoint`; None saves nothing.
        resume: continue from ``checkpoint``. On the CPU, with the same number of threads and processes, the result has the same
            bits as that of an uninterrupted run. torch's random number generators are restored. With another number of
            processes the batches are the same and the noise is drawn anew; if the newest checkpoint is damaged, the one
            before is used; both are reported on stderr.
        config: plain values stored in the checkpoint; a resumed run must pass the same ones. ``batch_size``, ``lr``,
            ``drop_last``, ``seed``, ``amp``, the optimizer's type and ``n`` are always compared.
        checkpoint_every: also write ``checkpoint`` each time this many steps have been taken.
        keep_previous: also keep the checkpoint before the newest; None: under ``torchrun`` and with ``checkpoint_every``.

    Raises:
        TypeError, ValueError: naming the field, the value given and what was expected.

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
        amp: ``torch.bfloat16`` runs the model under autocast; None does not. Weights, gradients and optimizer state keep the model's
            dtype. On the CPU, linear layers then use bfloat16 copies of the weights that are cast once per step, whatever ``accumulate``
            is; with ``shard`` it is plain torch autocast.
        capture: on CUDA, record the whole step (gather, network, loss, gradients, clipping, optimizer) as one CUDA graph and replay
            it, with fresh noise; the learning rates become tensors on the device. A step that cannot be recorded runs without a graph,
            and one line on stderr says why. On the CPU this has no effect. There, the linear layers of any model use the faster of
            torch's two libraries: each shape is timed with both at its first product, once per process. If they are equally fast, two
            runs may choose differently and so differ in rounding; a resumed run keeps the choices of its checkpoint.
            ``VAE_FAST_PRODUCTS=blas`` (torch's own) or ``onednn`` fixes the choice, and
            ``torch.use_deterministic_algorithms(True)`` means torch's own. Each of several processes chooses for itself.
        resident: False leaves ``train`` where it is, for data that do not fit on the device (or, mapped from a file, in
            memory): each batch is gathered there and then moved.

    Raises:
        TypeError, ValueError: naming the field, the value given and what was expected.

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
    """How a run in several processes, started by ``torchrun``, divides its work.

    Attributes:
        distributed: ``"auto"`` or ``"none"``, see :func:`vae_fast.training.distributed.join`.
        shard: True: FSDP2's ``fully_shard`` instead of DistributedDataParallel: each process holds its shard of the weights,
            gradients and optimizer state, and ``model`` stays sharded. Checkpoints hold the full tensors.
        timeout: seconds after which a process that does not answer counts as lost.

    Raises:
        TypeError, ValueError: naming the field, the value given and what was expected.

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
    """Refuse a group of the wrong type, an unknown keyword, and a keyword that is given together with its group.

    Args:
        given: the groups that the caller passed, or None, by the argument's name.
        keywords: the single settings that the caller passed.

    Raises:
        TypeError: naming the argument, the value given and what was expected.

    Example:
        >>> check_keywords({"batches": Batches()}, {"batch_size": 10})
        Traceback (most recent call last):
        TypeError: batch_size=10: given together with batches=Batches(...): expected it in one place, batches=Batches(batch_size=10)
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
            raise TypeError(f"{shown}: given together with {inside}(...): expected it in one place, {inside}({shown})")


def group(kind: type[T], given: T | None, keywords: Mapping[str, object]) -> T:
    """The group that the caller passed, otherwise one made of the keywords that are its fields.

    Example:
        >>> group(Processes, None, {"shard": True, "lr": 0.1})
        Processes(distributed='auto', shard=True, timeout=600.0)
    """
    if given is not None:
        return given
    fields = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{k: v for k, v in keywords.items() if k in fields})

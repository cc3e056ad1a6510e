"""The checks of the arguments of :func:`vae_fast.training.fit`: the argument, what came, and what was expected."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vae_fast.data.values import kind_of, refuse
from vae_fast.functional import _arguments as check
from vae_fast.training.distributed import World
from vae_fast.training.step import Record, Schedule, Transform


def check_options(
    flags: Mapping[str, bool],
    progress: bool | None,
    keep_previous: bool | None,
    seed: int,
    lr: float,
    optimizer: Optimizer | None,
    transform: Transform | None,
    callbacks: Sequence[Callable[[list[Record]], object]],
    config: Mapping[str, Any] | None,
) -> None:
    """Switches, seed, and what is called."""
    for name, value in flags.items():
        check.flag(name, value)
    for name, choice in (("progress", progress), ("keep_previous", keep_previous)):
        if choice is not None:
            check.flag(name, choice)
    check.seed("seed", seed)
    check.real("lr", lr, 0.0)
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if transform is not None and not callable(transform):
        raise TypeError(f"transform: expected a function of a batch, got {type(transform).__name__}")
    if not isinstance(callbacks, list | tuple) or not all(callable(c) for c in callbacks):
        raise TypeError(f"callbacks={check.shown(callbacks)}: expected a list of functions of the history")
    if config is not None and not isinstance(config, Mapping):
        raise TypeError(f"config: expected a mapping of plain values, got {type(config).__name__}")


def check_data_and_files(
    model: nn.Module,
    train: Tensor,
    valid: Tensor | None,
    epochs: int,
    batch_size: int,
    drop_last: bool,
    amp: torch.dtype | None,
    checkpoint: str | os.PathLike[str] | None,
    resume: bool,
) -> None:
    """The model, the data, the sizes and where the checkpoint goes."""
    if not callable(getattr(model, "loss", None)):
        raise TypeError(f"model: expected a module with a method loss(x), got {type(model).__name__}")
    check.positive_int("epochs", epochs)
    check.positive_int("batch_size", batch_size)
    least = batch_size if drop_last else 1
    for name, data, low in (("train", train, least), ("valid", valid, 1)):
        if data is None and name == "valid":
            continue
        data = check.tensor(name, data, check.TARGETS)
        if data.ndim < 2 or len(data) < low:
            raise ValueError(f"{name} has shape {tuple(data.shape)}: expected (n, *event) with n at least {low}")
    check.one_of("amp", amp, (None, torch.bfloat16))
    if checkpoint is not None and not isinstance(checkpoint, str | os.PathLike):
        raise TypeError(f"checkpoint={check.shown(checkpoint)}: expected the name of a file")
    if resume and checkpoint is None:
        raise ValueError("resume=True: expected a checkpoint to resume from, got checkpoint=None")
    if checkpoint is not None and Path(checkpoint).is_dir():
        raise ValueError(f"checkpoint={str(checkpoint)!r}: expected a file name, this is a directory")


def check_values(model: nn.Module, data: Mapping[str, Tensor | None], transform: Transform | None, world: World) -> None:
    """The data's values, each process its part."""
    for name, rows in data.items():
        if rows is not None:
            refuse(name, rows, kind_of(model, transform), world.rank, world.size)


def check_parts(
    world: World,
    batch_size: int,
    accumulate: int,
    checkpoint_every: int | None,
    checkpoint: str | os.PathLike[str] | None,
    shard: bool,
    optimizer: Optimizer | None,
) -> None:
    """How a batch is divided, and how often a checkpoint is written."""
    check.positive_int("accumulate", accumulate)
    if batch_size < world.size * accumulate:
        raise ValueError(f"batch_size={batch_size}: expected a row for each of {world.size} process(es) and accumulate={accumulate} pieces")
    if checkpoint_every is not None:
        check.positive_int("checkpoint_every", checkpoint_every)
        if checkpoint is None:
            raise ValueError(f"checkpoint_every={checkpoint_every}: expected a checkpoint to write, got checkpoint=None")
    if shard and optimizer is not None:
        raise ValueError("shard=True: expected optimizer=None, one made before the weights are sharded would train none of them")


def check_step(schedule: Schedule | None, max_grad_norm: float | None) -> None:
    """What is done at each step."""
    if schedule is not None and not callable(schedule):
        raise TypeError(f"schedule={check.shown(schedule)}: expected a function of the step, e.g. training.warmup(1000)")
    if max_grad_norm is not None:
        check.real("max_grad_norm", max_grad_norm, 0.0)
        if max_grad_norm == 0.0:
            raise ValueError("max_grad_norm=0.0: expected a positive number, or None")

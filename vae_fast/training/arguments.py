"""The checks of :func:`vae_fast.training.fit` that no group of settings can make alone: the data, and how settings fit together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from vae_fast.data.values import kind_of, refuse
from vae_fast.functional import _arguments as check
from vae_fast.training.distributed import World
from vae_fast.training.settings import Batches, Optimization, Processes, Record, Transform


def check_run(
    model: nn.Module,
    train: Tensor,
    valid: Tensor | None,
    epochs: int,
    callbacks: Sequence[Callable[[list[Record]], object]],
    progress: bool | None,
    batches: Batches,
) -> None:
    """Check the model, the data, and the arguments that belong to no group."""
    if not callable(getattr(model, "loss", None)):
        raise TypeError(f"model: expected a module with a method loss(x), got {type(model).__name__}")
    check.positive_int("epochs", epochs)
    least = batches.batch_size if batches.drop_last else 1
    for name, data, low in (("train", train, least), ("valid", valid, 1)):
        if data is None and name == "valid":
            continue
        data = check.tensor(name, data, check.COUNTS if kind_of(model, None) == "count" else check.TARGETS)
        if data.ndim < 2 or len(data) < low:
            raise ValueError(f"{name} has shape {tuple(data.shape)}: expected (n, *event) with n at least {low}")
    if not isinstance(callbacks, list | tuple) or not all(callable(c) for c in callbacks):
        raise TypeError(f"callbacks={check.shown(callbacks)}: expected a list of functions of the history")
    if progress is not None:
        check.flag("progress", progress)


def check_values(model: nn.Module, data: Mapping[str, Tensor | None], transform: Transform | None, world: World) -> None:
    """Check the values of the data; each process checks its part."""
    for name, rows in data.items():
        if rows is not None:
            refuse(name, rows, kind_of(model, transform), world.rank, world.size)


def check_parts(world: World, batches: Batches, optimization: Optimization, processes: Processes) -> None:
    """Check that a batch can be divided as asked, and that the optimizer fits ``shard``."""
    size, accumulate = batches.batch_size, batches.accumulate
    if size < world.size * accumulate:
        least = f"one row for each of {world.size} process(es) and accumulate={accumulate} pieces"
        raise ValueError(f"batch_size={size}: expected at least {least}")
    if processes.shard and optimization.optimizer is not None:
        raise ValueError("shard=True: expected optimizer=None; one made before the weights are sharded would not train them")

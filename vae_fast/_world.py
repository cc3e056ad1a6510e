"""The processes of a run: how many there are, what they agree on, and sums over all of them.

A process that is in no group is a :class:`World` of one, in which every method is free. Tensors go over the group's backend (NCCL for
CUDA), everything said between hosts over gloo.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vae_fast.errors import RunError

T = TypeVar("T")
TIMEOUT = 600.0
_AT_ONCE = 2**20  # numbers of each process that are gathered at once
_control: dict[str, Any] = {}


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        rank: this process's number.
        size: how many there are.
        joined: whether there is a process group; without one this is the only process.
        control: the group, with gloo in it, that plain values go over; None is the default group.

    Example:
        >>> world = World()
        >>> world.main, world.sum(torch.ones(2)), world.share(torch.arange(3))
        (True, tensor([1., 1.]), (tensor([0, 1, 2]), 3))
    """

    rank: int = 0
    size: int = 1
    joined: bool = False
    control: Any = None

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes; ``tensor`` itself is left as it is."""
        if self.joined:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def add_up(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums of each float64 tensor over the processes, added in the order of the ranks: the same bits in every process.

        An all-reduce adds in an order of its own, which differs with the number of processes and from element to element. What is gathered
        at once is :data:`_AT_ONCE` numbers of each process.

        Example:
            >>> World().add_up([torch.ones(2)])
            [tensor([1., 1.])]
        """
        if self.size == 1:
            return list(tensors)
        flat = torch.cat([t.reshape(-1) for t in tensors])
        for piece in flat.split(_AT_ONCE):
            parts = [torch.empty_like(piece) for _ in range(self.size)]
            dist.all_gather(parts, piece.contiguous())
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            piece.copy_(total)
        pieces = flat.split([t.numel() for t in tensors])
        return [piece.reshape(t.shape) for piece, t in zip(pieces, tensors, strict=True)]

    def of_main(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The main process's tensors, in every process: those of the others, of the same shapes, are overwritten and returned.

        Example:
            >>> World().of_main([torch.ones(1)])
            [tensor([1.])]
        """
        if self.size == 1:
            return list(tensors)
        kept = [t.contiguous() for t in tensors]
        for t in kept:
            dist.broadcast(t, 0)
        return kept

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process. No accelerator is waited for."""
        if not self.joined:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.control)
        return bool(flags)

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank, in every process."""
        if not self.joined:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def on_main(self, act: Callable[[], T]) -> T:
        """What ``act`` gives in the main process, in every process.

        Raises:
            Exception: what ``act`` raised, in the main process; RunError with its words in the others.
        """
        if not self.joined:
            return act()
        box: list[Any] = [None, None]
        failure = None
        if self.main:
            try:
                box[0] = act()
            except Exception as error:
                failure, box[1] = error, _words(error)
        dist.broadcast_object_list(box, src=0, group=self.control)
        if failure is not None:
            raise failure
        if box[1] is not None:
            raise RunError(f"rank 0: {box[1]}")
        return box[0]  # type: ignore[no-any-return]

    def together(self, act: Callable[[], T]) -> T:
        """``act()``, in every process; if it fails in one, every process fails.

        Raises:
            Exception: what ``act`` raised here, else RunError naming the rank it failed in and why.
        """
        if not self.joined:
            return act()
        failure, result = None, None
        try:
            result = act()
        except Exception as error:
            failure = error
        failed = [(rank, words) for rank, words in enumerate(self.gather(None if failure is None else _words(failure))) if words]
        if failure is not None:
            raise failure
        if failed:
            raise RunError(f"rank {failed[0][0]}: {failed[0][1]}")
        return result  # type: ignore[return-value]

    def same(self, values: Mapping[str, object]) -> None:
        """Compare plain values between the processes.

        Raises:
            RunError: in every process, if one has another value.
        """
        everyone = self.gather(dict(values))
        for rank, theirs in enumerate(everyone):
            for name, value in everyone[0].items():
                if theirs[name] != value:
                    raise RunError(
                        f"the processes do not fit each other: {name} is {value!r} on rank 0 and {theirs[name]!r} on rank {rank}"
                    )

    def share(self, rows: Tensor) -> tuple[Tensor, int]:
        """This process's part of a batch, and how many rows of it count.

        The parts differ by one row at most. A process that is left without one is given the first row of the batch, to
        count for nothing: it has to take part in what the others exchange.
        """
        part = rows.tensor_split(self.size)[self.rank] if self.size > 1 else rows
        return (part, len(part)) if len(part) else (rows[:1], 0)

    def reseed(self) -> None:
        """Noise of its own for every process, decided by the main process's random number generator. One process: nothing."""
        if self.size > 1:
            drawn = self.on_main(lambda: int(torch.empty((), dtype=torch.int64).random_()))
            torch.manual_seed((drawn + self.rank * 0x9E3779B97F4A7C15) % 2**63)


def _words(error: Exception) -> str:
    return f"{error}" if isinstance(error, ValueError | RuntimeError | OSError) else f"{type(error).__name__}: {error}"


def current(timeout: float = TIMEOUT) -> World:
    """The world of the process group that is there; this process alone if there is none.

    Args:
        timeout: seconds, of the gloo group that is made where the one there has no gloo in it.

    Example:
        >>> current().size
        1
    """
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size(), True, _control_group(timeout))


def _control_group(timeout: float) -> Any:
    """None, for the default group, if plain values can go over it; else one group of gloo's for as long as the default one is there."""
    if "gloo" in str(dist.get_backend_config()).lower():
        return None
    default = dist.group.WORLD
    if _control.get("beside") is not default:
        _control.update(beside=default, group=dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout)))
    return _control["group"]

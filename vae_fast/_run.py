"""The parts of a training run: one epoch's loop, and where the run stands between checkpoints."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from vae_fast import checkpoint as checkpoints
from vae_fast import distributed as processes
from vae_fast.distributed import Engine, Terminated

Record = dict[str, float]
Transform = Callable[[Tensor], Tensor]


def autocast(device: torch.device, amp: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    """torch's autocast for the device, or nothing.

    Example:
        >>> with autocast(torch.device("cpu"), torch.bfloat16):
        ...     torch.is_autocast_enabled("cpu")
        True
    """
    return contextlib.nullcontext() if amp is None else torch.autocast(device.type, dtype=amp)


def tell(line: str) -> None:
    """Print a line about the run itself to stderr.

    Example:
        >>> tell("continuing")
    """
    print(f"vae_fast: {line}", file=sys.stderr, flush=True)


class Step:
    """One epoch's inner loop."""

    def __init__(
        self,
        engine: Engine,
        optimizer: Optimizer,
        device: torch.device,
        amp: torch.dtype | None,
        accumulate: int,
        transform: Transform | None,
    ) -> None:
        self.engine, self.optimizer, self.device, self.amp = engine, optimizer, device, amp
        self.accumulate, self.transform = accumulate, transform

    def epoch(
        self, data: Tensor, batches: Sequence[Tensor], bar: Any | None, saver: Saver, partial: Mapping[str, float] | None
    ) -> tuple[float, float]:
        """Mean loss and KL over the rows of the batches; the one host synchronisation is at the end."""
        self.engine.objective.train()
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        done = 0
        if partial is not None:
            done = int(partial["step"])
            if self.engine.world.main:  # the others' sums so far are in its own
                total += torch.tensor([partial["loss"], partial["kl"]], dtype=torch.float64)
        for number, rows in enumerate(batches[done:], done + 1):
            self._step(data, rows, total)
            if bar is not None:
                bar.update(len(rows))
            saver.after_step(number, len(batches), total)
        mean_loss, mean_kl = (self.engine.world.sum(total) / sum(map(len, batches))).tolist()
        return mean_loss, mean_kl

    def _step(self, data: Tensor, batch: Tensor, total: Tensor) -> None:
        """One batch: this process's part of each piece, weighted so that the average over the processes is the batch's mean."""
        world = self.engine.world
        self.optimizer.zero_grad()
        pieces = batch.tensor_split(min(self.accumulate, len(batch)))
        for number, piece in enumerate(pieces, 1):
            rows, count = world.share(piece)
            x = data.index_select(0, rows).to(self.device)
            x = x if self.transform is None else self.transform(x)
            weight = count * world.size / len(batch)
            both = self.engine.backward(x, weight, last=number == len(pieces), amp=autocast(self.device, self.amp))
            if count:
                total.add_(both, alpha=count)
        self.optimizer.step()


class Saver:
    """A run's place in time: its history, its checkpoints, and whether it is told to stop."""

    def __init__(
        self,
        path: Path | None,
        engine: Engine,
        optimizer: Optimizer,
        shuffle: torch.Generator,
        settings: Mapping[str, Any],
        every: int | None,
        previous: bool,
    ) -> None:
        self.path, self.engine, self.world, self.optimizer, self.shuffle = path, engine, engine.world, optimizer, shuffle
        self.settings, self.every, self.previous = settings, every, previous
        self.history: list[Record] = []
        self.stop: Callable[[], bool] = lambda: False

    def resume(self) -> dict[str, float] | None:
        """Continue from the newest good checkpoint; where it stands inside an epoch, if it does."""
        path, world = self.path, self.world
        assert path is not None
        state, note = world.on_main(lambda: checkpoints.newest(path))
        was = checkpoints.world_size_of(state)
        rank = world.rank if was == world.size else 0
        parts: dict[str, Any] = {"model": self.engine.model, "optimizer": self.optimizer, "shuffle": self.shuffle, "config": self.settings}
        world.together(lambda: checkpoints.adopt(path, state, rank=rank, **parts))
        self.history = [dict(record) for record in state["history"]]
        partial: dict[str, float] | None = state.get("partial")
        said = [] if note is None else [note]
        if was != world.size:
            world.reseed()
            said.append(f"{path}: written by {was} process(es), this run has {world.size}: same batches, same order, noise drawn anew")
        if processes.restarts():
            said.append(f"restart {processes.restarts()}: what was done after the checkpoint is done again")
        if world.main and (said or partial is not None):
            steps = "" if partial is None else f" and {int(partial['step'])} steps"
            tell("; ".join([*said, f"continuing after {len(self.history)} epochs{steps}"]))
        return partial

    def begin(self, partial: Mapping[str, float] | None) -> None:
        """An epoch begins, or goes on."""
        self._order = self.shuffle.get_state()
        self._start = time.perf_counter() - (0.0 if partial is None else partial["seconds"])

    def seconds(self) -> float:
        """How long the epoch has trained."""
        return time.perf_counter() - self._start

    def after_step(self, number: int, steps: int, total: Tensor) -> None:
        """Write a checkpoint if it is time to, or if a process is told to stop."""
        if self.path is None:
            return
        stop = self.world.any(self.stop())
        due = self.every is not None and (len(self.history) * steps + number) % self.every == 0 and number < steps
        if stop or due:
            loss, kl = self.world.sum(total).tolist()
            self.save({"step": number, "loss": loss, "kl": kl, "seconds": self.seconds()})
        if stop:
            if self.world.main:
                tell(f"SIGTERM: {self.path} holds {len(self.history)} epochs and {number} of {steps} steps; continue by resuming it")
            raise Terminated

    def save(self, partial: Mapping[str, float] | None = None) -> None:
        """Write a checkpoint, in the main process; if that fails, every process fails."""
        path, world, model = self.path, self.world, self.engine.model
        if path is None:
            return
        shuffle = self.shuffle.get_state() if partial is None else self._order
        state = checkpoints.snapshot(
            model=model,
            optimizer=self.optimizer,
            shuffle=shuffle,
            history=self.history,
            config=self.settings,
            partial=partial,
            keep=world.main,
        )
        first, *others = world.gather(checkpoints.rng_state(checkpoints.device_of(model)))
        state["rng"] = first if not others else first | {"ranks": dict(enumerate(others, 1))}
        world.on_main(lambda: checkpoints.write(path, state, previous=self.previous))

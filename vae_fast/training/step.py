"""The parts of a training run: one epoch's loop, and where the run stands between checkpoints."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from vae_fast.errors import Terminated
from vae_fast.functional import _arguments as check
from vae_fast.training import checkpoint as files
from vae_fast.training import distributed as processes
from vae_fast.training.capture import CapturedStep, Graph, make_plain
from vae_fast.training.distributed import Engine
from vae_fast.training.products import Products, found, kept
from vae_fast.training.settings import Batches, Checkpoints, Hardware, Optimization, Record, Schedule


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


def warmup(steps: int, then: str = "constant", total: int | None = None) -> Schedule:
    """A schedule for :func:`vae_fast.training.fit`: linear warm-up of the learning rate, then constant or decaying to 0 at step ``total``.

    Args:
        steps: length of the warm-up; step i has the factor ``(i + 1) / steps``. 0: no warm-up.
        then: ``"constant"``, ``"cosine"`` (Loshchilov and Hutter 2017, eq. 5, without restarts) or ``"linear"``.
        total: number of steps of the whole run; needed for ``"cosine"`` and ``"linear"``.

    Returns:
        A function of the step, counted from 0, that gives the factor on the learning rate.

    Raises:
        TypeError, ValueError: naming the argument, the value given and what was expected.

    Example:
        >>> rate = warmup(4, "linear", 14)
        >>> [round(rate(step), 2) for step in (0, 3, 4, 9, 14)]
        [0.25, 1.0, 1.0, 0.5, 0.0]
    """
    check.one_of("then", then, ("constant", "cosine", "linear"))
    if steps:
        check.positive_int("steps", steps)
    if then != "constant" and (total is None or total <= steps):
        raise ValueError(f"total={total}: expected more than the {steps} warm-up steps, for then={then!r}")

    def factor(step: int) -> float:
        if step < steps:
            return (step + 1) / steps
        if then == "constant" or total is None:
            return 1.0
        left = 1.0 - min(1.0, (step - steps) / (total - steps))
        if then == "linear":
            return left
        if then == "cosine":
            return 0.5 * (1.0 - math.cos(math.pi * left))
        raise ValueError(f"then={then!r}: expected 'constant', 'cosine' or 'linear'")

    return factor


class Step:
    """One epoch's inner loop.

    Args:
        engine: the model in every process.
        optimizer: over the model's weights.
        device: the model's.
        batches, optimization, hardware: the run's settings.
        products: the context for the linear layers of the forward and backward passes.
    """

    def __init__(
        self,
        engine: Engine,
        optimizer: Optimizer,
        device: torch.device,
        batches: Batches,
        optimization: Optimization,
        hardware: Hardware,
        products: Products,
    ) -> None:
        """See the class."""
        self.engine, self.optimizer, self.device, self.products = engine, optimizer, device, products
        self.batches, self.optimization, self.hardware = batches, optimization, hardware
        self.may_capture = hardware.capture and device.type == "cuda"
        self.rates = [float(group["lr"]) for group in optimizer.param_groups]  # before a checkpoint brings those of its last step
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        self.total = torch.zeros(2, dtype=torch.float64, device=device)  # one tensor for all epochs: a recorded step adds to it
        self.captured: CapturedStep | None = None

    def epoch(
        self,
        data: Tensor,
        batches: Sequence[Tensor],
        bar: Any | None,
        saver: Saver,
        partial: Mapping[str, float] | None,
        taken: int = 0,
    ) -> tuple[float, float]:
        """Mean loss and KL over the batches' rows; the host waits for the device once, at the end. ``taken``: steps of earlier epochs."""
        self.engine.objective.train()
        total = self.total.zero_()
        done = 0
        if partial is not None:
            done = int(partial["step"])
            if self.engine.world.main:  # the others' sums so far are in its own
                total += torch.tensor([partial["loss"], partial["kl"]], dtype=torch.float64)
        run = self._runner(data)
        for number, rows in enumerate(batches[done:], done + 1):
            if self.optimization.schedule is not None:
                self._set_rates(self.optimization.schedule(taken + number - 1))
            run(rows)
            if bar is not None:
                bar.update(len(rows))
            saver.after_step(number, len(batches), total)
        mean_loss, mean_kl = (self.engine.world.sum(total) / sum(map(len, batches))).tolist()
        return mean_loss, mean_kl

    def _runner(self, data: Tensor) -> Callable[[Tensor], None]:
        """The step over rows of ``data``, captured if possible."""
        if self.may_capture:
            why = self._obstacle(data)
            if why is None:
                self.captured = CapturedStep(lambda rows: self._step(data, rows), self.optimizer, Graph(self.device), tell)
            else:
                tell(f"the training step runs kernel by kernel, not as a CUDA graph: {why}")
            self.may_capture = False
        return self.captured or (lambda rows: self._step(data, rows))

    def _obstacle(self, data: Tensor) -> str | None:
        """Why the step cannot be recorded, or None."""
        if self.engine.world.joined:
            return "several processes exchange gradients"
        if data.device != self.device:
            return f"the data are on {data.device}"
        return f"accumulate={self.batches.accumulate}" if self.batches.accumulate > 1 else None

    def _set_rates(self, factor: float) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor

    def _step(self, data: Tensor, batch: Tensor) -> None:
        """One batch: this process's part of each piece, weighted so that the average over the processes is the batch's mean."""
        world = self.engine.world
        self.optimizer.zero_grad()
        accumulate, transform, norm = self.batches.accumulate, self.batches.transform, self.optimization.max_grad_norm
        pieces = batch.tensor_split(min(accumulate, len(batch))) if accumulate > 1 else (batch,)
        with self.products:
            for number, piece in enumerate(pieces, 1):
                rows, count = world.share(piece)
                x = data.index_select(0, rows).to(self.device)
                x = x if transform is None else transform(x)
                weight = count * world.size / len(batch)
                both = self.engine.backward(x, weight, last=number == len(pieces), amp=autocast(self.device, self.hardware.amp))
                if count:
                    self.total.add_(both, alpha=count)
        if norm is not None:
            torch.nn.utils.clip_grad_norm_(self.params, norm)
        self.optimizer.step()


class Saver:
    """The progress of a run: its history, its checkpoints, and whether it has been told to stop.

    Args:
        checkpoints: the run's settings.
        engine, optimizer, products: as in :class:`Step`.
        shuffle: the generator of the batch order.
        settings: plain values that a resumed run has to share.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        engine: Engine,
        optimizer: Optimizer,
        shuffle: torch.Generator,
        settings: Mapping[str, Any],
        products: Products,
    ) -> None:
        """A run that starts from scratch; :meth:`resume` continues an earlier one."""
        self.engine, self.world, self.optimizer, self.shuffle = engine, engine.world, optimizer, shuffle
        self.settings, self.products, self.every = settings, products, checkpoints.checkpoint_every
        self.path = None if checkpoints.checkpoint is None else Path(checkpoints.checkpoint)
        keep = checkpoints.keep_previous
        self.previous = processes.launched() or self.every is not None if keep is None else keep
        self.history: list[Record] = []
        self.stop: Callable[[], bool] = lambda: False

    def resume(self) -> dict[str, float] | None:
        """Continue from the newest checkpoint that can be read; its progress inside an epoch, or None if it was written after one."""
        path, world = self.path, self.world
        assert path is not None
        state, note = world.on_main(lambda: files.newest(path))
        was = files.world_size_of(state)
        rank = world.rank if was == world.size else 0
        parts: dict[str, Any] = {"model": self.engine.model, "optimizer": self.optimizer, "shuffle": self.shuffle, "config": self.settings}
        world.together(lambda: files.adopt(path, state, rank=rank, **parts))
        record, line = world.together(lambda: found(path, state.get("products"), rank))
        self.products.adopt(record)
        make_plain(self.optimizer)
        self.history = [dict(record) for record in state["history"]]
        partial: dict[str, float] | None = state.get("partial")
        said = [] if note is None else [note]
        if was != world.size:
            world.reseed()
            said.append(f"{path}: written by {was} process(es), this run has {world.size}: same batches, same order, noise drawn anew")
        if line:
            said.append(line)
        if processes.restarts():
            said.append(f"restart {processes.restarts()}: the steps after the checkpoint are repeated")
        if world.main and (said or partial is not None):
            steps = "" if partial is None else f" and {int(partial['step'])} steps"
            tell("; ".join([*said, f"continuing after {len(self.history)} epochs{steps}"]))
        return partial

    def begin(self, partial: Mapping[str, float] | None) -> None:
        """Start an epoch, or continue one."""
        self._order = self.shuffle.get_state()
        self._start = time.perf_counter() - (0.0 if partial is None else partial["seconds"])

    def seconds(self) -> float:
        """Seconds of training in this epoch so far."""
        return time.perf_counter() - self._start

    def after_step(self, number: int, steps: int, total: Tensor) -> None:
        """Write a checkpoint if one is due, or if a process has been told to stop."""
        if self.path is None:
            return
        stop = self.world.any(self.stop())
        due = self.every is not None and (len(self.history) * steps + number) % self.every == 0 and number < steps
        if stop or due:
            loss, kl = self.world.sum(total).tolist()
            self.save({"step": number, "loss": loss, "kl": kl, "seconds": self.seconds()})
        if stop:
            if self.world.main:
                tell(f"SIGTERM: {self.path} holds {len(self.history)} epochs and {number} of {steps} steps; resume from it to continue")
            raise Terminated

    def save(self, partial: Mapping[str, float] | None = None) -> None:
        """Write a checkpoint in the main process; if that fails, every process fails."""
        path, world, model = self.path, self.world, self.engine.model
        if path is None:
            return
        shuffle = self.shuffle.get_state() if partial is None else self._order
        state = files.snapshot(
            model=model,
            optimizer=self.optimizer,
            shuffle=shuffle,
            history=self.history,
            config=self.settings,
            partial=partial,
            keep=world.main,
        )
        state["products"] = kept(world.gather(self.products.record()))
        first, *others = world.gather(files.rng_state(files.device_of(model)))
        state["rng"] = first if not others else first | {"ranks": dict(enumerate(others, 1))}
        world.on_main(lambda: files.write(path, state, previous=self.previous))

"""A whole training step, recorded as a CUDA graph and replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Step = Callable[[Tensor], None]
#: Steps taken before one is recorded: optimizers make their state in the first, libraries their workspaces.
WARM_UP = 3


class Graph:
    """Records and replays a CUDA graph; tests substitute another recorder."""

    def __init__(self, device: torch.device) -> None:
        """Nothing is recorded yet."""
        self.device = device
        self._graph: Any = None
        self._side = torch.cuda.Stream(device)

    def beside(self, work: Callable[[], None]) -> None:
        """Run ``work`` on a side stream, as recording does, so that autograd has nothing pending on the current one."""
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            work()
        torch.cuda.current_stream(self.device).wait_stream(self._side)

    def record(self, work: Callable[[], None]) -> None:
        """Record ``work`` without running it."""
        stream = torch.cuda.current_stream(self.device)
        generator = torch.cuda.default_generators[stream.device_index]
        before = generator.clone_state()
        self._graph = torch.cuda.CUDAGraph()
        pool = torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(self._graph, pool=pool):
                work()
        except BaseException:
            # A recording that breaks off leaves its stream current, torch's generator refusing to draw outside it, and the allocator
            # putting what that stream allocates into the graph's pool.
            torch.cuda.set_stream(stream)
            generator.graphsafe_set_state(before)
            self._graph = None
            _release(stream.device_index, pool)
            raise

    def replay(self) -> None:
        """Run the recording on the tensors' current values, with fresh noise."""
        self._graph.replay()


def _release(device: int, pool: Any) -> None:
    """Close the pool of a recording that broke off and give it back; its memory is free once the tensors in it are gone."""
    try:
        torch._C._cuda_endAllocateToPool(device, pool)
    except RuntimeError:
        return  # the recording itself ended in order, which closed the pool, and the graph, which is gone, has given it back
    torch._C._cuda_releasePool(device, pool)


class CapturedStep:
    """A training step that is recorded once and then replayed: the host launches one graph instead of hundreds of kernels.

    The first :data:`WARM_UP` batches, and every batch of another size, run without the graph. Everything the step reads has to stay at the
    same address: weights, data, and the learning rates, which become tensors on the device, so that a scheduler's changes reach the graph
    (torch's schedulers fill such a tensor in place). If another setting of the optimizer changes, the step is recorded again.

    Args:
        step: takes the row numbers of a batch, ``(batch,)`` int64 on the device, and trains on them; it must not wait for the device.
        optimizer: the optimizer that ``step`` uses.
        recorder: records and replays the graph, see :class:`Graph`.
        tell: called with one line if the step cannot be recorded; it then runs without a graph.

    Example:
        >>> class Again:  # a recorder that does the work again
        ...     def beside(self, work): work()
        ...     def record(self, work): self.replay = work
        >>> weight = torch.nn.Parameter(torch.ones(()))
        >>> adam = torch.optim.Adam([weight], fused=True)
        >>> step = CapturedStep(lambda rows: None, adam, Again(), print)
        >>> for _ in range(5):
        ...     step(torch.zeros(3, dtype=torch.int64))
        >>> step.replays
        2
    """

    def __init__(self, step: Step, optimizer: Optimizer, recorder: Any, tell: Callable[[str], None]) -> None:
        """See the class."""
        self.step, self.optimizer, self.recorder, self.tell = step, optimizer, recorder, tell
        self.replays = 0
        self._rows: Tensor | None = None
        self._warm, self._failed = 0, False
        self._settings: list[dict[str, Any]] = []

    def __call__(self, rows: Tensor) -> None:
        """Train on a batch."""
        if self._failed or (self._rows is not None and rows.shape != self._rows.shape):
            self.step(rows)
        elif self._warm < WARM_UP:
            self._warm += 1
            self.recorder.beside(lambda: self.step(rows))
        else:
            self._replay(rows)

    def _replay(self, rows: Tensor) -> None:
        if self._rows is None or self._settings != _settings(self.optimizer):
            self._rows = rows.clone()
            try:
                make_capturable(self.optimizer)
                self.recorder.record(lambda: self.step(self._rows))
            except Exception as error:  # whatever a model does that cannot be recorded
                self._failed = True
                reason = (str(error).strip().splitlines() or [""])[0]
                self.tell(f"the training step cannot be recorded as a CUDA graph and runs without one: {type(error).__name__}: {reason}")
                self.step(rows)
                return
            self._settings = _settings(self.optimizer)
        self._rows.copy_(rows)
        self.recorder.replay()
        self.replays += 1


def make_capturable(optimizer: Optimizer) -> None:
    """Move what changes from step to step to the device: step counts and learning rates.

    Raises:
        TypeError: if the optimizer keeps its step counts on the host.

    Example:
        >>> adam = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))], lr=0.5)
        >>> make_capturable(adam)
        >>> adam.param_groups[0]["lr"], adam.param_groups[0]["capturable"]
        (tensor(0.5000), True)
    """
    for group in optimizer.param_groups:
        counts = any("step" in optimizer.state[p] for p in group["params"] if p in optimizer.state)
        if counts and "capturable" not in group:
            raise TypeError(f"{type(optimizer).__name__} keeps its steps on the host (it has no setting 'capturable')")
        device = group["params"][0].device
        if not isinstance(group["lr"], Tensor):
            group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float32, device=device)
        if "capturable" in group:
            group["capturable"] = True
            # The optimizer would warn of batches of another size, which run as they are.
            optimizer.__dict__["_warned_capturable_if_run_uncaptured"] = True
        for p in group["params"]:
            step = optimizer.state[p].get("step") if p in optimizer.state else None
            if isinstance(step, Tensor) and step.device != device:
                optimizer.state[p]["step"] = step.to(device)


def make_plain(optimizer: Optimizer) -> None:
    """Turn learning rates back into numbers: a checkpoint of a captured run may hold tensors of another device.

    Example:
        >>> adam = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))], lr=0.5)
        >>> make_capturable(adam)
        >>> make_plain(adam)
        >>> adam.param_groups[0]["lr"], adam.param_groups[0]["capturable"]
        (0.5, False)
    """
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"] = round(float(group["lr"]), 12)
            if "capturable" in group:
                group["capturable"] = False


def _settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What a recorded step has built in."""
    return [{k: v for k, v in group.items() if k != "params" and not isinstance(v, Tensor)} for group in optimizer.param_groups]

"""How it is measured: contenders in turns, medians and quantiles, and the machine's own copy and multiply-add speed in the same rounds."""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from vae_fast.bench.case import DIRECTIONS, IN_CACHE, Work
from vae_fast.bench.limits import Probe, events, synchronize

Sample = tuple[float, float, float]  # seconds of DIRECTIONS
NOT_CAPTURED = ("compile-max", "scikit-learn")  # brings graphs of its own; runs on the CPU


@dataclass
class Times:
    """Seconds of every call by direction, and what they were taken with: ``clock``, ``events`` or ``graph``."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {d: [] for d in DIRECTIONS})
    timer: str = "clock"
    host: float | None = None  # seconds to enqueue a call

    def add(self, sample: Sample) -> None:
        """One call."""
        for direction, value in zip(DIRECTIONS, sample, strict=True):
            self.seconds[direction].append(value)

    def quantiles(self, direction: str = "both") -> tuple[float, float, float]:
        """Median, 20 % and 80 % quantile.

        Example:
            >>> times = Times()
            >>> for i in range(1, 6):
            ...     times.add((float(i), 0.0, 0.0))
            >>> times.quantiles()
            (3.0, 1.8, 4.2)
        """
        values = torch.tensor(self.seconds[direction], dtype=torch.float64)
        low, middle, high = torch.quantile(values, torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
        return middle, round(low, 12), round(high, 12)

    def fastest(self, direction: str = "both") -> float:
        """The 5 % quantile: what a call takes when nothing disturbs it, as far as there were such calls."""
        return float(torch.quantile(torch.tensor(self.seconds[direction], dtype=torch.float64), 0.05))

    @property
    def spent(self) -> float:
        """Seconds measured so far."""
        return sum(self.seconds["both"])


def _call(work: Work, device: str) -> Sample:
    """One call, in parts: wall clock on the CPU, device events on CUDA. ``both`` counts dropping the old gradients, as a step does."""
    if device == "cpu":
        t0 = time.perf_counter()
        inputs = work.prepare()
        t1 = time.perf_counter()
        out = work.forward(inputs)
        t2 = time.perf_counter()
        work.backward(out)
        t3 = time.perf_counter()
        return t3 - t0, t2 - t1, t3 - t2
    start, middle, end = events(3)
    inputs = work.prepare()
    start.record()
    out = work.forward(inputs)
    middle.record()
    work.backward(out)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3, start.elapsed_time(middle) / 1e3, middle.elapsed_time(end) / 1e3


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    gc.collect(0)
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def warm_up(work: Work, device: str) -> None:
    """Compile, fill caches: five calls, fewer if they are slow."""
    deadline = time.perf_counter() + 1.0
    for _ in range(5):
        work()
        synchronize(device)
        if time.perf_counter() > deadline:
            return


def in_turns(
    works: Mapping[str, Work],
    device: str,
    *,
    seconds: float,
    rounds: int = 7,
    probe: Probe | None = None,
    deadline: float = float("inf"),
) -> dict[str, Times]:
    """Time every contender for about ``seconds``, spread over rounds; a round gives each its turn, so a slow spell of the machine hits all.

    A call that takes longer than its turn is made twice at least, once after the deadline (of ``time.monotonic``). On CUDA, small work is
    replayed as a graph, so that what is timed is the device, and ``host`` is what it takes to enqueue the call as the user makes it.
    """
    times = {name: Times(timer="clock" if device == "cpu" else "events") for name in works}
    callers: dict[str, Callable[[], Sample]] = {}
    for name, work in works.items():
        warm_up(work, device)
        callers[name] = _caller(work, device, times[name], capture=name not in NOT_CAPTURED)
        if device != "cpu":
            times[name].host = host_seconds(work)
    with _undisturbed():
        for _ in range(rounds):
            if probe is not None:
                probe.measure(seconds / rounds / 4)
            for name, call in callers.items():
                taken = times[name]
                late = time.monotonic() > deadline
                if (taken.spent > seconds or late) and len(taken.seconds["both"]) >= (1 if late else 2):
                    continue
                end = time.perf_counter() + seconds / rounds
                while True:
                    taken.add(call())
                    if time.perf_counter() > end:
                        break
    return times


def _caller(work: Work, device: str, times: Times, capture: bool) -> Callable[[], Sample]:
    small = sum(t.nbytes for t in work.sets[0] if isinstance(t, torch.Tensor)) < IN_CACHE
    if device != "cpu" and small and capture:
        try:
            call = _graphed(work)
        except RuntimeError:  # what waits for the device cannot be captured
            torch.cuda.synchronize()
            return lambda: _call(work, device)
        times.timer = "graph"
        return call
    return lambda: _call(work, device)


def _graphed(work: Work) -> Callable[[], Sample]:
    """Every set of inputs once, forward alone and forward with backward, each captured as a CUDA graph."""

    def all_of(backward: bool) -> None:
        for _ in work.sets:
            out = work.forward(work.prepare())
            if backward:
                work.backward(out)

    graphs = []
    for backward in (True, False):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            all_of(backward)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            all_of(backward)
        graphs.append(graph)

    def replay() -> Sample:
        start, middle, end = events(3)
        start.record()
        graphs[0].replay()
        middle.record()
        graphs[1].replay()
        end.record()
        end.synchronize()
        n = len(work.sets) * 1e3
        both, forward = start.elapsed_time(middle) / n, middle.elapsed_time(end) / n
        return both, forward, max(0.0, both - forward)

    return replay


def host_seconds(work: Work, calls: int = 50) -> float:
    """Median seconds until a call returns, without waiting for the device.

    Example:
        >>> host_seconds(Work(torch.exp, [(torch.zeros(2),)], None)) > 0
        True
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    taken = []
    for _ in range(calls):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return statistics.median(taken)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The profiler's own log lines, which no setting turns off, go nowhere."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        for number, handle in zip((1, 2), kept, strict=True):
            os.dup2(handle, number)
            os.close(handle)
        os.close(nowhere)


def peak_memory(work: Work, device: str) -> int:
    """Bytes of tensors alive at the worst moment of a call beyond its inputs; gradients count. What compiles should have run before.

    Example:
        >>> peak_memory(Work(lambda x: (x + 1).sum(), [(torch.zeros(1000),)], None), "cpu") >= 4000
        True
    """
    if device != "cpu":
        for leaves in work.leaves:
            for t in leaves:
                t.grad = None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    with _silent(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    results: Any = profile.profiler
    events = results.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    # The call starts by dropping the last one's gradients, so what counts is the highest rise above a low that came before it.
    now = lowest = worst = 0
    for _, change in changes:
        now += change
        lowest = min(lowest, now)
        worst = max(worst, now - lowest)
    return worst

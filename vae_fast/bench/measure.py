"""How it is measured: contenders in turns, medians and quantiles, and the machine's own copy and multiply-add speed in the same rounds."""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from vae_fast.bench.case import DIRECTIONS, Work
from vae_fast.bench.device_time import CLOCK, Sample, Timer, on_idle_stream, synchronize, timer_of
from vae_fast.bench.limits import Probe
from vae_fast.errors import RanDryError


@dataclass
class Times:
    """Seconds of every call by direction, what they were taken with (one of :data:`.device_time.TIMERS`), and why no graph was replayed."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {d: [] for d in DIRECTIONS})
    timer: str = CLOCK
    not_replayed: str = ""
    host: float | None = None  # seconds to enqueue a call

    def add(self, sample: Sample) -> None:
        """One call."""
        for direction, value in zip(DIRECTIONS, sample, strict=True):
            self.seconds[direction].append(value)

    def restart(self, timer: Timer) -> None:
        """Forget every call: the next are timed in another way."""
        self.seconds = {d: [] for d in DIRECTIONS}
        self.timer, self.not_replayed = timer.name, timer.not_replayed

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


def warm_up(work: Work, device: str) -> float:
    """Compile, fill caches: five calls, fewer if they are slow. Returns the seconds of the last one."""
    deadline = time.perf_counter() + 1.0
    taken = 0.0
    for _ in range(5):
        begin = time.perf_counter()
        work()
        synchronize(device)
        taken = time.perf_counter() - begin
        if time.perf_counter() > deadline:
            break
    return taken


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

    A turn begins with a call that is not timed, unless one takes longer than ``seconds``: caches and free pages are as the contender
    before left them, and a loop of training never meets that. A call that takes longer than its turn is timed twice at least, once after
    the deadline (of ``time.monotonic``). On CUDA the device is timed (:mod:`.device_time`), and ``host`` is what it takes to enqueue the
    call as the user makes it.
    """
    times: dict[str, Times] = {}
    timers: dict[str, Timer] = {}
    slow = set()
    for name, work in works.items():
        if warm_up(work, device) > seconds:
            slow.add(name)
        timers[name] = timer_of(name, work, device)
        times[name] = Times(timer=timers[name].name, not_replayed=timers[name].not_replayed)
        if device != "cpu":
            times[name].host = host_seconds(work)
    with _undisturbed():
        for _ in range(rounds):
            if probe is not None:
                probe.measure(seconds / rounds / 4)
            for name, taken in times.items():
                late = time.monotonic() > deadline
                if (taken.spent > seconds or late) and len(taken.seconds["both"]) >= (1 if late else 2):
                    continue
                if not late and name not in slow:
                    works[name]()
                    synchronize(device)
                end = time.perf_counter() + seconds / rounds
                while True:
                    try:
                        taken.add(timers[name].sample())
                    except RanDryError as error:  # after samples that did not: all of them are taken again, in the other way
                        timers[name] = on_idle_stream(works[name], str(error))
                        taken.restart(timers[name])
                    if time.perf_counter() > end:
                        break
    return times


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

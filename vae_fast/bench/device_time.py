"""Seconds of a CUDA device alone: a graph of many calls replayed, or calls enqueued while the stream is kept busy.

An idle device begins with the first kernel while the host still enqueues the others, so that events around a call hold the host's time too:
tens of microseconds, as much as a copy of a hundred megabytes takes. Each figure says how it was taken; nothing falls back in silence.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vae_fast.bench.case import Work
from vae_fast.errors import RanDryError
from vae_fast.training.capture import Graph

Sample = tuple[float, float, float]  # seconds of case.DIRECTIONS
Piece = Callable[[], Any]
CLOCK, EVENTS, BUSY, GRAPH = "clock", "events", "busy", "graph"
#: What a row's ``timer`` means.
TIMERS = {
    GRAPH: "a CUDA graph of many calls, replayed behind a busy stream",
    BUSY: "calls enqueued behind a busy stream, between events",
    EVENTS: "between events on an idle stream: the host's time is in it",
    CLOCK: "the host's clock",
}
GRAPHS_OF_ITS_OWN, ON_HOST = "compile-max", "scikit-learn"  # contenders that cannot be captured
REPLAY = 2e-3  # seconds that a replay should take, so that its start counts for nothing
MOST_CALLS = 512  # in a graph
LEAD = 2e-4  # seconds that the stream is kept busy at first; as often as that is too short, twice as long
TRIES = 9


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        torch.cuda.synchronize()


def events(n: int) -> list[Any]:
    """CUDA events that can be timed."""
    return [torch.cuda.Event(enable_timing=True) for _ in range(n)]


class Lead:
    """Keeps the current stream busy, for as long as it takes the host to enqueue what is timed behind it."""

    def __init__(self) -> None:
        """Find how many of its cycles the device counts in a second."""
        cycles = 1_000_000
        torch.cuda._sleep(1)  # loads the kernel
        start, end = events(2)
        start.record()
        torch.cuda._sleep(cycles)
        end.record()
        end.synchronize()
        self.cycles_per_second = cycles / (start.elapsed_time(end) / 1e3)
        self.seconds = LEAD

    def __call__(self) -> None:
        """Once."""
        torch.cuda._sleep(int(self.seconds * self.cycles_per_second))


def behind(lead: Lead, pieces: Sequence[Piece]) -> list[float]:
    """Seconds of the device for each piece of work, all of them enqueued before it begins with the first.

    Raises:
        RanDryError: if the device waited for the host however long it was kept busy.
    """
    first = lead.seconds
    for _ in range(TRIES):
        marks = events(len(pieces) + 1)
        lead()
        marks[0].record()
        for piece, mark in zip(pieces, marks[1:], strict=True):
            piece()
            mark.record()
        caught_up = marks[0].query()
        marks[-1].synchronize()
        if not caught_up:
            return [begin.elapsed_time(end) / 1e3 for begin, end in itertools.pairwise(marks)]
        lead.seconds *= 2
    longest, lead.seconds = lead.seconds / 2, first
    raise RanDryError(f"the device, kept busy for {longest * 1e3:.0f} ms, had caught up with the host: the call may wait for it")


@dataclass
class Timer:
    """How a contender is timed: a sample of it, the name of the way (one of :data:`TIMERS`), and why no graph is replayed."""

    name: str
    not_replayed: str
    sample: Callable[[], Sample]


def timer_of(contender: str, work: Work, device: str) -> Timer:
    """The best way to time a contender: a graph, else a busy stream, else events, with the reason; the clock on the CPU."""
    if device == "cpu":
        return Timer(CLOCK, "", lambda: by_clock(work))
    if contender == ON_HOST:
        return Timer(CLOCK, "it runs on the CPU", lambda: by_clock(work))
    lead = Lead()
    why = "it replays graphs of its own"
    if contender != GRAPHS_OF_ITS_OWN:
        try:
            return Timer(GRAPH, "", _replays(work, device, lead))
        except Exception as error:  # whatever cannot be captured; if the work itself fails, it fails again below
            torch.cuda.synchronize()
            why = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    try:
        by_events(work, lead)
    except RanDryError as error:
        return on_idle_stream(work, f"{why}; {error}")
    return Timer(BUSY, why, lambda: by_events(work, lead))


def on_idle_stream(work: Work, why: str) -> Timer:
    """For work that waits for the device, which no lead can hide."""
    return Timer(EVENTS, why, lambda: by_events(work))


def by_clock(work: Work) -> Sample:
    """One call by the host's clock, ``both`` counting that the old gradients are dropped, as a step does.

    Example:
        >>> both, forward, backward = by_clock(Work(torch.exp, [(torch.zeros(2),)], None))
        >>> both >= forward + backward > 0
        True
    """
    t0 = time.perf_counter()
    inputs = work.prepare()
    t1 = time.perf_counter()
    out = work.forward(inputs)
    t2 = time.perf_counter()
    work.backward(out)
    t3 = time.perf_counter()
    return t3 - t0, t2 - t1, t3 - t2


def by_events(work: Work, lead: Lead | None = None) -> Sample:
    """One call between events, behind a busy stream if there is a ``lead``."""
    kept: list[Any] = []

    def forward() -> None:
        kept[:] = [work.forward(work.prepare())]

    def backward() -> None:
        work.backward(kept.pop())

    if lead is not None:
        first, second = behind(lead, [forward, backward])
        return first + second, first, second
    start, middle, end = events(3)
    start.record()
    forward()
    middle.record()
    backward()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3, start.elapsed_time(middle) / 1e3, middle.elapsed_time(end) / 1e3


def _replays(work: Work, device: str, lead: Lead) -> Callable[[], Sample]:
    """Many calls forward with backward, and as many forward alone, each a graph; a sample is the mean of a replay of each."""
    calls = len(work.sets)

    def recorded(backward: bool) -> Graph:
        def work_of(count: int) -> None:
            for _ in range(count):
                out = work.forward(work.prepare())
                if backward:
                    work.backward(out)

        graph = Graph(torch.device(device))
        graph.beside(lambda: work_of(len(work.sets)))
        graph.record(lambda: work_of(calls))
        graph.replay()  # the first replay uploads the graph
        torch.cuda.synchronize()
        return graph

    both = recorded(backward=True)
    seconds = behind(lead, [both.replay])[0] / calls
    most = max(1, MOST_CALLS // len(work.sets))
    calls = len(work.sets) * min(most, max(1, math.ceil(REPLAY / (max(seconds, 1e-9) * len(work.sets)))))
    if calls > len(work.sets):
        del both
        both = recorded(backward=True)
    if not work.differentiable:

        def forward_alone() -> Sample:
            seconds = behind(lead, [both.replay])[0] / calls
            return seconds, seconds, 0.0

        return forward_alone
    forward = recorded(backward=False)

    def sample() -> Sample:
        whole, half = (s / calls for s in behind(lead, [both.replay, forward.replay]))
        return whole, half, max(0.0, whole - half)

    return sample

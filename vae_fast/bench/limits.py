"""What the machine can do: the speed of a copy and of multiply-adds, measured in the rounds of what they are held against."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from vae_fast._backend import C
from vae_fast.bench.device_time import Lead, behind


@dataclass(frozen=True)
class Limits:
    """What the machine can do, measured in the same rounds: bytes read plus written by a copy, and multiply-adds (two operations each)."""

    copy: float
    fma: float | None

    def seconds(self, least_bytes: int | None, flops: int | None) -> tuple[float | None, str]:
        """The least time for this many bytes and operations, and which of the two limits sets it.

        Example:
            >>> Limits(copy=1e9, fma=1e9).seconds(2_000_000, 1_000_000)
            (0.002, 'copy')
        """
        found = [(least_bytes / self.copy, "copy")] if least_bytes else []
        if flops and self.fma:
            found.append((flops / self.fma, "arithmetic"))
        return max(found) if found else (None, "")


class Probe:
    """The machine's own speed: a copy too large for the cache and a loop of multiply-adds, a few milliseconds each."""

    def __init__(self, device: str, quick: bool = False) -> None:
        """Allocate what is copied."""
        size = (1 << 30) if device != "cpu" else (64 << 20) if quick else (256 << 20)
        self.device = device
        self.lead = None if device == "cpu" else Lead()
        self.source = torch.rand(size // 4, device=device)
        self.target = torch.empty_like(self.source)
        self.sink = torch.zeros(1, device=device)
        self.copies: list[float] = []
        self.flops: list[float] = []
        self.iterations = 1 << 14
        while self.fma() < 2e-3 and self.iterations < 1 << 28:
            self.iterations *= 2
        self.measure(0.05)
        self.copies, self.flops = [], []

    def fma(self) -> float:
        """Seconds of one loop; its speed is kept."""
        if C is None:
            return 1.0
        seconds, done = self._timed(lambda: C.fma_probe(self.sink, self.iterations))
        self.flops.append(float(done) / seconds)
        return seconds

    def copy(self) -> None:
        """One copy; its speed is kept."""
        seconds = self._timed(lambda: self.target.copy_(self.source))[0]
        self.copies.append(2 * self.source.nbytes / seconds)

    def _timed(self, f: Callable[[], Any]) -> tuple[float, Any]:
        if self.lead is not None:
            out: list[Any] = []
            return behind(self.lead, [lambda: out.append(f())])[0], out[-1]
        begin = time.perf_counter()
        done = f()
        return time.perf_counter() - begin, done

    def measure(self, seconds: float) -> None:
        """Both for about so long."""
        deadline = time.perf_counter() + seconds
        while True:
            self.copy()
            self.fma()
            if time.perf_counter() > deadline:
                return

    def limits(self) -> tuple[Limits, Limits]:
        """Since the last time: the fastest, which is what the machine can do, and the medians, which tell how busy it was."""
        found = [Limits(f(self.copies), f(self.flops) if self.flops else None) for f in (max, statistics.median)]
        self.copies, self.flops = [], []
        return found[0], found[1]

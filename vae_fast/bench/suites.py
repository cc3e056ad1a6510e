"""The suites: which cases there are, and how a case becomes rows of a result."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from vae_fast.bench import (
    cases_aggregate,
    cases_head,
    cases_likelihoods,
    cases_linear,
    cases_mixture,
    cases_overhead,
    machine,
    measure,
    training,
)
from vae_fast.bench.case import DIRECTIONS, Bench, Case, Function, Work
from vae_fast.bench.limits import Limits, Probe
from vae_fast.bench.options import Options, Row, facts_of

SUITES = ("kernels", "mixtures", "likelihoods", "linear", "memory", "overhead", "training", "sweeps")
DEFAULT = ("kernels", "mixtures", "linear", "memory", "overhead", "training")
DTYPES = ("float32", "float64", "bfloat16", "float16", "uint8")
PEER_MEMORY = 12 << 30  # bytes: a peer that would allocate more is skipped


def cases(suite: str, options: Options) -> list[Case]:
    """The cases of a suite; ``training`` has none (see :mod:`vae_fast.bench.training`).

    Raises:
        ValueError: for another name.

    Example:
        >>> [case.label for case in cases("mixtures", Options(quick=True))][0]
        'mixture_log_prob, N=10000 K=10 D=2'
    """
    device, quick = "cpu" if options.device == "cpu" else "cuda", options.quick
    if suite not in SUITES or suite == "training":
        raise ValueError(f"suite={suite!r}: expected one of {', '.join(s for s in SUITES if s != 'training')}")
    if suite == "overhead":
        return cases_overhead.overhead()
    if suite == "likelihoods":
        return cases_likelihoods.likelihoods(device, quick)
    if suite == "linear":
        return cases_linear.linear(device, quick)
    if (options.shapes or options.dtype) and suite != "sweeps":
        heads = options.shapes or [(1024, 784, 20) if quick else (8192, 784, 20)]
        points = options.shapes or [(10_000, 10, 2) if quick else (100_000, 64, 16)]
        dtype = options.dtype or "float32"
        head = [c for s in heads for c in cases_head.at_shape(s, dtype, quick)] if suite != "mixtures" else []
        mixture = [c for s in points for c in cases_mixture.at_shape(s, dtype, quick)] if suite == "mixtures" and dtype != "uint8" else []
        return head + mixture
    if suite == "kernels":
        return cases_head.kernels(device, quick)
    if suite == "mixtures":
        return cases_mixture.mixtures(device, quick) + (cases_aggregate.aggregates(quick) if device == "cpu" else [])
    if suite == "memory":
        return cases_head.memory(device, quick) + cases_mixture.memory(device, quick)
    return cases_head.sweeps(device, quick) + cases_mixture.sweeps(device, quick)


def run(suite: str, options: Options, only: Sequence[str] | None = None) -> list[Row]:
    """Measure a suite.

    Args:
        suite: one of :data:`SUITES`.
        options: how.
        only: labels of the cases to measure; None is all.

    Returns:
        One row per case, contender and direction, see :func:`measure_case`.
    """
    if suite == "training":
        return training.run(options)
    todo = [c for c in cases(suite, options) if only is None or c.label in only]
    probe: Probe | None = None
    rows = []
    for case in todo:
        if time.monotonic() > options.deadline:
            options.say(f"skipped {case.label}: no time left")
            continue
        if suite != "memory" and probe is None:
            probe = _probe(options.device, options.quick)
        options.say(f"measuring {case.label}")
        rows += measure_case(suite, case, options, probe)
    return rows


@functools.lru_cache(maxsize=1)
def _probe(device: str, quick: bool) -> Probe:
    return Probe(device, quick)


def measure_case(suite: str, case: Case, options: Options, probe: Probe | None) -> list[Row]:
    """The rows of a case: what it is, seconds with their quantiles, memory, and the limit that the machine sets.

    Without a probe only memory is measured.
    """
    names = _fitting(case, options)
    if "ours" not in names and "ours" in case.contenders and options.contenders is None:
        return []
    with _threads(case.threads):
        if any(name.startswith("compile") for name in names):
            torch._dynamo.reset()  # compiled forms of the case before would count against the limit of recompilations
        bench = Bench(case, options.device)
        works = {}
        for name in names:
            try:
                work = bench.work(name)
                work()  # compiles
                works[name] = work
            except ImportError:
                options.say(f"skipped {name} of {case.label}: not installed")
            except Exception as error:  # a peer that cannot run here (no compiler, out of memory) leaves the others their figures
                if name == "ours":
                    raise
                options.say(f"skipped {name} of {case.label}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        if "ours" in works and case.name in options.slower:
            works["ours"] = _Slower(works["ours"], options.slower[case.name])
        times: dict[str, measure.Times] = {}
        limits: tuple[Limits, Limits] | None = None
        if probe is not None:
            how: dict[str, Any] = {"seconds": options.measuring_time, "rounds": options.rounds, "deadline": options.deadline}
            times = measure.in_turns(works, options.device, probe=probe, **how)
            limits = probe.limits()
        peaks = {name: measure.peak_memory(work, options.device) if name != "scikit-learn" else None for name, work in works.items()}
        usual = peaks.get("eager")
        if case.memory_share is not None and usual is not None:
            case = dataclasses.replace(case, memory_target=int(case.memory_share * usual))
        return [row for name in works for row in _rows(suite, case, name, times.get(name), peaks[name], limits, options)]


def _fitting(case: Case, options: Options) -> list[str]:
    """The contenders that are asked for and fit."""
    room = machine.available_memory(options.device)
    room = int(0.7 * room) if options.device == "cpu" else int(0.9 * room)
    held = case.least_bytes["both"]
    names = []
    for name in case.contenders:
        if options.contenders is not None and name not in options.contenders:
            continue
        needed = held + case.needs.get(name, 0)
        allowed = room if name == "ours" else min(room, PEER_MEMORY)
        if needed > allowed:
            options.say(f"skipped {name} of {case.label}: would take {needed / 2**30:.0f} GiB, {allowed / 2**30:.0f} are allowed for it")
        else:
            names.append(name)
    return names


def _rows(
    suite: str,
    case: Case,
    contender: str,
    times: measure.Times | None,
    peak: int | None,
    both_limits: tuple[Limits, Limits] | None,
    options: Options,
) -> list[Row]:
    facts = facts_of(options.device)
    limits, usual = both_limits or (None, None)
    rows = []
    for direction in DIRECTIONS if case.differentiable and times is not None else DIRECTIONS[:1]:
        least, flops = case.least_bytes.get(direction), case.flops.get(direction)
        row: Row = {"suite": suite, "case": case.label, "name": case.name, "contender": contender, "direction": direction}
        row |= {"shape": dict(case.shape), "dtype": case.dtype, **facts, "threads": torch.get_num_threads()}
        row |= {"seconds": None, "fastest": None, "q20": None, "q80": None}
        row |= {"timer": None, "not_replayed": None, "calls": None, "host_microseconds": None}
        if times is not None:
            middle, low, high = times.quantiles(direction)
            host = None if direction != "both" else middle if times.host is None else times.host
            row |= {
                "seconds": middle,
                "fastest": times.fastest(direction),
                "q20": low,
                "q80": high,
                "timer": times.timer,
                "not_replayed": times.not_replayed or None,
                "calls": len(times.seconds[direction]),
            }
            row["host_microseconds"] = None if host is None else host * 1e6
        row["peak_bytes"] = peak if direction == "both" else None
        row |= {"least_bytes": least, "flops": flops}
        seconds = row["seconds"]
        row["gb_per_second"] = least / seconds / 1e9 if least and seconds else None
        row["gflops"] = flops / seconds / 1e9 if flops and seconds else None
        row["copy_gb_per_second"] = None if limits is None else limits.copy / 1e9
        row["fma_gflops"] = None if limits is None or limits.fma is None else limits.fma / 1e9
        limit, kind = (None, "") if limits is None else limits.seconds(least, flops)
        row |= {"limit_seconds": limit, "limit": kind, "reached": limit / seconds if limit and seconds else None}
        row["usual_limit_seconds"] = None if usual is None else usual.seconds(least, flops)[0]
        row["memory_target"] = case.memory_target if contender == "ours" and direction == "both" else None
        rows.append(row)
    return rows


@contextmanager
def _threads(n: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if n is not None:
            torch.set_num_threads(n)
        yield
    finally:
        torch.set_num_threads(before)


class _Slower(Work):
    """The same work, taking longer by a share of its time."""

    def __init__(self, work: Work, share: float) -> None:
        super().__init__(work.function, work.sets, work.upstream)
        self.share = share

    def forward(self, inputs: Any) -> Any:
        return self._stretched(super().forward, inputs)

    def backward(self, out: Any) -> None:
        self._stretched(super().backward, out)

    def _stretched(self, function: Function, argument: Any) -> Any:
        begin = time.perf_counter()
        out = function(argument)
        end = begin + (time.perf_counter() - begin) * (1.0 + self.share)
        while time.perf_counter() < end:
            pass
        return out

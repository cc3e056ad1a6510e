"""How it is measured: in turns, medians, with the machine's own copy speed beside it, and the machine and commit on record."""

from __future__ import annotations

import datetime
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import vae_fast

ROOT = Path(__file__).resolve().parent.parent
Step = Callable[[], object]


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_per_call(step: Step, device: str, at_least: float) -> float:
    """Median seconds of one call over about ``at_least`` seconds: wall clock on CPU, device events on CUDA."""
    times: list[float] = []
    deadline = time.perf_counter() + at_least
    while time.perf_counter() < deadline or len(times) < 3:
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        else:
            begin = time.perf_counter()
            step()
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def in_turns(steps: dict[str, Step], device: str, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Medians of every contender in each of ``rounds`` rounds; a round gives each its turn, so a slow spell of the machine hits all."""
    for step in steps.values():
        for _ in range(5):
            step()
    synchronize(device)
    return_value: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            return_value[name].append(seconds_per_call(step, device, seconds / rounds))
    return return_value


def host_seconds(step: Step) -> float:
    """Seconds until a call returns, without waiting for the device."""
    torch.cuda.synchronize()
    times = []
    for _ in range(200):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    torch.cuda.synchronize()
    return statistics.median(times)


def copy_bandwidth(device: str) -> float:
    """Bytes per second, read plus written, of a copy too large for the cache."""
    source = torch.rand((256 << 20) // 4, device=device)
    target = torch.empty_like(source)
    for _ in range(3):
        target.copy_(source)
    synchronize(device)
    return 2 * source.nbytes / seconds_per_call(lambda: target.copy_(source), device, 1.0)


def peak_memory(step: Step, device: str) -> int:
    """Bytes of tensors alive at the worst moment of a call beyond its inputs; gradients count."""
    step()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    # The step starts by dropping the last one's gradients, so what counts is the highest rise above a low that came before it.
    now = lowest = worst = 0
    for _, change in changes:
        now += change
        lowest = min(lowest, now)
        worst = max(worst, now - lowest)
    return worst


def commit() -> str:
    """The commit that is checked out, with a mark if the kernels or the package differ from it."""
    run = lambda *a: subprocess.run(["git", *a], cwd=ROOT, capture_output=True, text=True).stdout.strip()  # noqa: E731
    changed = run("status", "--porcelain", "--", "csrc", "vae_fast", "setup.py")
    return (run("rev-parse", "--short=12", "HEAD") or "unknown") + ("+changes" if changed else "")


def processor() -> str:
    """The processor's name."""
    try:
        names = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor() or platform.machine()


def machine(device: str) -> dict[str, Any]:
    """Everything a reader needs to know about where and of what the figures were taken."""
    info = vae_fast.build_info()
    facts: dict[str, Any] = {
        "device": device,
        "processor": processor(),
        "instruction_set": info["isa_in_use"],
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "backend": info["backend"],
    }
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.strip().splitlines()
        facts |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "driver": driver[0] if driver else "unknown"}
    return facts


def folder(facts: dict[str, Any]) -> Path:
    """Where the results of a machine are kept."""
    name = facts.get("gpu") or f"{facts['processor']}-{facts['instruction_set']}-{facts['threads']}-threads"
    return ROOT / "benchmarks" / "results" / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")

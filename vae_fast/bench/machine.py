"""Where and of what a figure was taken, and whether the code has changed since."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from vae_fast._backend import build_info
from vae_fast._products import processor

ROOT = Path(__file__).resolve().parents[2]
_MEASURED = ("csrc", "vae_fast/functional")  # the code a figure depends on, by device: the other device's kernels do not count
_OTHER = {"cpu": "csrc/cuda", "cuda": "csrc/cpu"}


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except OSError as error:
        return subprocess.CompletedProcess(arguments, 127, "", str(error))


def commit() -> str:
    """The commit that is checked out, marked if the code differs from it; where there is no checkout, the one that was built.

    Example:
        >>> len(commit()) >= 7
        True
    """
    found = _git("rev-parse", "--short=12", "HEAD").stdout.strip() if (ROOT / "csrc").is_dir() else ""
    if not found:
        return str(build_info()["commit"] or "unknown")
    changed = _git("status", "--porcelain", "--", "csrc", "vae_fast", "setup.py").stdout.strip()
    return found + ("+changes" if changed else "")


def stale(measured: str, device: str, *more: str) -> bool:
    """Whether the kernels have changed since the commit that was measured; False where that commit is not known.

    Args:
        measured: what :func:`commit` said then.
        device: ``"cpu"`` or ``"cuda"``: the kernels of the other do not count.
        more: paths that count besides.

    Example:
        >>> stale("unknown", "cpu")
        False
    """
    other = _OTHER["cpu" if device == "cpu" else "cuda"]
    paths = [*_MEASURED, *more, f":(exclude){other}"]
    return _git("diff", "--quiet", measured.removesuffix("+changes"), "HEAD", "--", *paths).returncode == 1


def facts(device: str) -> dict[str, Any]:
    """Everything a reader needs to know about where figures were taken.

    Example:
        >>> facts("cpu")["device"]
        'cpu'
    """
    info = build_info()
    found: dict[str, Any] = {
        "device": "cpu" if device == "cpu" else "cuda",
        "processor": processor(),
        "instruction_set": info["isa_in_use"],
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "backend": info["backend"],
    }
    if device != "cpu":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(query, capture_output=True, text=True).stdout.strip().splitlines()
        except OSError:
            driver = []
        found |= {"gpu": torch.cuda.get_device_name(device), "driver": driver[0] if driver else "unknown"}
    return found


def name(found: dict[str, Any]) -> str:
    """A folder's name for the machine.

    Example:
        >>> name({"processor": "AMD EPYC", "instruction_set": "avx512", "threads": 2})
        'amd-epyc-avx512-2-threads'
    """
    text = found.get("gpu") or f"{found['processor']}-{found['instruction_set']}-{found['threads']}-threads"
    return re.sub(r"[^a-z0-9]+", "-", str(text).lower()).strip("-")


def available_memory(device: str) -> int:
    """Bytes that can still be allocated.

    Example:
        >>> available_memory("cpu") > 0
        True
    """
    if device != "cpu":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else 8 << 30

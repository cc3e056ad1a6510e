"""Where and of what a figure was taken, and what tells one machine from another."""

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
from vae_fast._processor import processor
from vae_fast.bench import sources

_NAMED = {"avx512_bf16": "bf16", "bf16": "bf16", "amx_bf16": "amx"}  # those that a folder's name tells: figures differ with them
#: What makes two machines the same, as far as figures go.
_SAME = {
    "cpu": ("device", "processor", "vendor", "family", "model", "instruction_set", "instructions", "threads"),
    "cuda": ("device", "gpu"),
}


def facts(device: str) -> dict[str, Any]:
    """Everything a reader needs to know about where figures were taken, and of which code (``code``: digests, see :mod:`.sources`).

    Example:
        >>> facts("cpu")["device"]
        'cpu'
    """
    info = build_info()
    kind = "cpu" if device == "cpu" else "cuda"
    now = datetime.datetime.now(datetime.timezone.utc)
    found: dict[str, Any] = {
        "device": kind,
        **processor(),
        "instruction_set": info["isa_in_use"],
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": sources.commit(),
        "code": {what: sources.digest(what, kind) for what in sources.PATHS},
        "date": now.strftime("%Y-%m-%d"),
        "time": now.strftime("%H:%M"),
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


def measured_at(found: dict[str, Any]) -> tuple[str, str]:
    """When, to put results in order: the date, and the time of day (UTC), which older results do not have.

    Example:
        >>> measured_at({"date": "2026-11-22"}) < measured_at({"date": "2026-11-22", "time": "00:10"})
        True
    """
    return str(found["date"]), str(found.get("time", ""))


def _short(processor: str) -> str:
    """Without marks, the word processor and the clock: "Intel(R) Xeon(R) CPU @ 2.70GHz" is "Intel Xeon"."""
    return " ".join(re.sub(r"\((R|TM)\)|@.*|\b(CPU|Processor)\b", " ", processor, flags=re.IGNORECASE).split())


def label(found: dict[str, Any]) -> str:
    """A machine in words.

    Example:
        >>> label({"processor": "AMD EPYC", "family": "25", "model": "17", "instruction_set": "avx512", "threads": 2})
        'AMD EPYC (family 25, model 17), avx512, 2 threads'
    """
    if found.get("gpu"):
        return str(found["gpu"])
    kind = f" (family {found['family']}, model {found['model']})" if found.get("family") and found.get("model") else ""
    sets = "".join(f" + {name}" for name in _named(found))
    threads = found["threads"]
    return f"{_short(found['processor'])}{kind}, {found['instruction_set']}{sets}, {threads} thread{'s' * (threads != 1)}"


def _named(found: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(_NAMED[i] for i in found.get("instructions") or () if i in _NAMED))


def name(found: dict[str, Any]) -> str:
    """A folder's name for the machine: no two that measure differently have the same, as far as their facts go.

    Facts without family and model, of results taken before these were kept, give the name that they had.

    Example:
        >>> name({"processor": "AMD EPYC", "instruction_set": "avx512", "threads": 2})
        'amd-epyc-avx512-2-threads'
        >>> name(processor("model name: AMD EPYC\\ncpu family: 25\\nmodel: 17") | {"instruction_set": "avx512", "threads": 2})
        'amd-epyc-family-25-model-17-avx512-2-threads'
    """
    return re.sub(r"[^a-z0-9]+", "-", label(found).lower()).strip("-")


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What tells two machines apart, in words; empty for the same machine. A fact that only one of them has tells them apart.

    Example:
        >>> differences({"processor": "AMD EPYC", "threads": 2}, {"processor": "AMD EPYC", "threads": 1})
        ['threads 2, now 1']
    """
    keys = _SAME["cuda" if now.get("gpu") else "cpu"]
    return [f"{key} {then.get(key)}, now {now.get(key)}" for key in keys if then.get(key) != now.get(key)]


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

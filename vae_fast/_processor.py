"""The processor at hand: its name, what tells it from others of the same name, and its instruction sets."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

_CPUINFO = Path("/proc/cpuinfo")
#: What /proc/cpuinfo calls the vendor, the family and the model, on x86 and on ARM.
_KEYS = {"vendor": ("vendor_id", "CPU implementer"), "family": ("cpu family", "CPU architecture"), "model": ("model", "CPU part")}
#: Instruction sets that decide what kernels, oneDNN and BLAS can do, as /proc/cpuinfo names them.
_INSTRUCTIONS = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "sve", "sve2", "bf16", "i8mm", "sme"),
)


def processor(cpuinfo: str | None = None) -> dict[str, Any]:
    """The processor's name, vendor, family, model and instruction sets, as far as the system tells.

    A name such as "AMD EPYC" or "Intel Xeon Processor" is all that many virtual machines have; family and model tell those apart.

    Args:
        cpuinfo: the text of /proc/cpuinfo; None reads it.

    Example:
        >>> processor("model name : AMD EPYC\\nvendor_id : AuthenticAMD\\ncpu family : 25\\nmodel : 17\\nflags : fpu avx2 avx512f")
        {'processor': 'AMD EPYC', 'vendor': 'AuthenticAMD', 'family': '25', 'model': '17', 'instructions': ['avx2', 'avx512f']}
    """
    if cpuinfo is None:
        try:
            cpuinfo = _CPUINFO.read_text()
        except OSError:
            cpuinfo = ""
    lines: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        lines.setdefault(key.strip(), value.strip())  # the first core's
    found: dict[str, Any] = {"processor": lines.get("model name") or platform.processor() or platform.machine()}
    found |= {key: next((lines[name] for name in names if name in lines), None) for key, names in _KEYS.items()}
    flags = lines.get("flags", lines.get("Features", "")).split()
    return found | {"instructions": [name for name in _INSTRUCTIONS if name in flags]}

"""The finder of scalar loops: on samples written here, and its words where it cannot run."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from vae_fast.bench import suites
from vae_fast.bench.options import Options

TOOL = Path(__file__).resolve().parent.parent / "tools" / "hot_loops.py"

# The executable segment lies 0x2000 further in memory than in the file, and is mapped at 0x7f00_0000.
SEGMENTS = """
  LOAD           0x000000 0x0000000000000000 0x0000000000000000 0x000900 0x000900 R   0x1000
  LOAD           0x001000 0x0000000000003000 0x0000000000003000 0x000800 0x000800 R E 0x1000
"""
LISTING = """
0000000000003010 <loop>:
    3010:	vmovss %xmm0,(%rsi,%r9,4)
    3016:	vmovups %ymm0,(%rsi)
    301c:	cmp    %edx,%ecx
"""
SCRIPT = """
PERF_RECORD_MMAP2 7/7: [0x7f000000(0x800) @ 0x1000 fe:00 1 2]: r-xp /there/_C.so
PERF_RECORD_MMAP2 7/7: [0x7e000000(0x800) @ 0 fe:00 1 2]: r-xp /torch/_C.so
     7f000010 avx2::loop<float>(int) (/there/_C.so)
     7f000010 avx2::loop<float>(int) (/there/_C.so)
     7f000016 avx2::loop<float>(int) (/there/_C.so)
     7f00001c avx2::loop<float>(int) (/there/_C.so)
     7e000010 torch::other() (/torch/_C.so)
"""


@pytest.fixture
def tool(monkeypatch):
    """The tool, which is in no package."""
    monkeypatch.syspath_prepend(str(TOOL.parent))
    return importlib.import_module(TOOL.stem)


def test_samples_are_found_in_the_listing(tool):
    count, names = tool.samples_of(SCRIPT, SEGMENTS, "/there/_C.so")
    assert count == {0x3010: 2, 0x3016: 1, 0x301C: 1}
    lines = tool.report(count, names, tool.instructions_of(LISTING))
    assert lines[0] == "4 samples, 50% scalar"
    assert lines[1].split() == ["scalar", "50%", "avx2::loop<float>"]
    assert lines[2].split()[:2] == ["50%", "vmovss"]


@pytest.mark.parametrize(
    ("instruction", "scalar"),
    [
        ("vmovss %xmm0,(%rsi)", True),
        ("vfmadd231sd %xmm0,%xmm1,%xmm2", True),
        ("addss  %xmm0,%xmm1", True),
        ("vcvttss2si %xmm0,%eax", False),
        ("vaddps %ymm0,%ymm1,%ymm2", False),
        ("vbroadcastss (%rdi),%ymm1", False),
        ("movslq %edx,%r9", False),
    ],
)
def test_what_is_scalar(tool, instruction, scalar):
    assert tool.is_scalar(instruction) is scalar


def test_no_samples_are_said(tool):
    assert tool.report(*tool.samples_of("", SEGMENTS, "/there/_C.so"), {}) == ["no sample in the extension"]


def test_without_perf_it_says_what_to_install():
    done = subprocess.run([sys.executable, str(TOOL)], capture_output=True, text=True, env={"PATH": "/nowhere"})
    assert done.returncode == 1
    assert done.stderr == "hot_loops: perf, objdump, readelf not found: install Linux's perf and binutils\n"


@pytest.mark.parametrize("name", ["training", "kernel", ""])
def test_a_suite_without_cases_is_refused(name):
    with pytest.raises(ValueError, match=f"^suite='{name}': expected one of kernels, mixtures, .*sweeps$"):
        suites.cases(name, Options(quick=True))

"""The kernels' inner loops are vectors in the machine code, not an element at a time: the compiler gives up on a loop without a word."""

import re
import shutil
import subprocess

import pytest
from oracle import needs_kernels

from vae_fast import _backend

LOOP = re.compile(r"vae_fast::(avx512|avx2)::(map_tile|scale_tile|scale_backward_tile)<.*\bfloat\b")
REGISTER = {"avx512": "%zmm", "avx2": "%ymm"}
ARITHMETIC = re.compile(r"\tv(?:add|sub|mul|div|sqrt|min|max|fn?m(?:add|sub)\d+)(ps|ss)\s")


@pytest.fixture(scope="module")
def counts():
    """Of each loop's instructions of floating-point arithmetic: those on whole vectors, and those on one element."""
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not installed: nothing reads the machine code")
    code = subprocess.run(["objdump", "-d", "-C", "--no-show-raw-insn", _backend.C.__file__], capture_output=True, text=True, check=True)
    found, name, isa = {}, None, ""
    for line in code.stdout.splitlines():
        if head := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            name = head[1] if (loop := LOOP.search(head[1])) else None
            isa = loop[1] if loop else ""
        elif name is not None and (arithmetic := ARITHMETIC.search(line)):
            whole, single = found.setdefault((isa, name), [0, 0])
            vector = arithmetic[1] == "ps" and REGISTER[isa] in line
            found[isa, name] = [whole + vector, single + (arithmetic[1] == "ss")]
    if not found:
        pytest.skip("the extension has no symbols, or none of x86-64 processors: its loops are not found")
    return found


@pytest.mark.parametrize("isa", REGISTER)
@needs_kernels
def test_every_loop_over_a_tile_is_vectorised(counts, isa):
    loops = {name: numbers for (of, name), numbers in counts.items() if of == isa}
    assert sum("map_tile" in name for name in loops) >= 40 and sum("scale_" in name for name in loops) >= 20
    scalar = [name[:150] for name, (whole, single) in loops.items() if whole == 0 and single > 0]
    assert not scalar, "\n".join(scalar)

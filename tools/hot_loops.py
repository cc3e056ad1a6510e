"""Where a benchmark's case spends its time, by the instruction: loops that the compiler left to single numbers show at once.

    python tools/hot_loops.py --suite kernels [--case TEXT] [--seconds S]

Each case that has TEXT in its name runs ours for S seconds on one thread, sampled by Linux's perf. Printed: the share of the samples in the
extension that fall on scalar floating-point instructions, by loop, and the instructions that are hit most. An instruction that waits for
the one before it takes that one's samples. Needs perf and binutils; the extension must have its symbols.
"""

import argparse
import collections
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCALAR = re.compile(r"v?(?:mov|add|sub|mul|div|sqrt|min|max|ucomi|comi|cvt\w*2|f(?:n)?m(?:add|sub)\d+)s[sd]\b")
MAPPED = re.compile(r"PERF_RECORD_MMAP2.*\[0x([0-9a-f]+)\(0x([0-9a-f]+)\) @ (?:0x)?([0-9a-f]+) .*: r-xp (.*)$")
SAMPLE = re.compile(r"\s+([0-9a-f]+) (.*) \((.*)\)$")
SEGMENT = re.compile(r"LOAD\s+0x([0-9a-f]+) 0x([0-9a-f]+) 0x[0-9a-f]+ 0x([0-9a-f]+) 0x[0-9a-f]+ R E")


def is_scalar(instruction):
    """Whether it works on one floating-point number.

    Example:
        >>> is_scalar("vmovss %xmm0,(%rsi,%r9,4)"), is_scalar("vmovups %ymm0,(%rsi)")
        (True, False)
    """
    return SCALAR.match(instruction) is not None


def instructions_of(listing):
    """Instructions of a disassembly by address."""
    found = (re.match(r"\s+([0-9a-f]+):\t(.*)", line) for line in listing.splitlines())
    return {int(m[1], 16): m[2] for m in found if m}


def samples_of(script, segments, library):
    """Samples in `library` by the address that its disassembly has, and the name of each address's function.

    ``script`` is what ``perf script -F ip,sym,dso --show-mmap-events`` writes, ``segments`` what ``readelf -lW`` does.
    """
    loaded = [tuple(int(x, 16) for x in m.groups()) for m in SEGMENT.finditer(segments)]
    mapped, count, names = [], collections.Counter(), {}
    for line in script.splitlines():
        if place := MAPPED.search(line):
            if place[4] == library:
                mapped.append(tuple(int(x, 16) for x in place.groups()[:3]))
        elif (sample := SAMPLE.match(line)) and sample[3] == library:
            ip = int(sample[1], 16)
            offset = next(ip - begin + at for begin, size, at in mapped if begin <= ip < begin + size)
            address = next(offset - at + virtual for at, virtual, size in loaded if at <= offset < at + size)
            count[address] += 1
            names[address] = sample[2]
    return count, names


def report(count, names, instructions, most=3):
    """Lines about the samples of a case."""
    total = sum(count.values())
    if total == 0:
        return ["no sample in the extension"]
    scalar = collections.Counter()
    for address, n in count.items():
        if is_scalar(instructions.get(address, "")):
            scalar[names[address].split("(")[0]] += n
    lines = [f"{total} samples, {sum(scalar.values()) / total:.0%} scalar"]
    lines += [f"  scalar {n / total:4.0%}  {name[-90:]}" for name, n in scalar.most_common(most) if n >= 0.02 * total]
    for address, n in count.most_common(most):
        lines.append(f"  {n / total:11.0%}  {instructions.get(address, '?'):45.45}  {names[address].split('(')[0][-60:]}")
    return lines


def run_case(suite, label, seconds):
    """Ours of one case, on one thread, over and over."""
    import torch

    from vae_fast.bench import suites
    from vae_fast.bench.case import Bench
    from vae_fast.bench.options import Options

    torch.set_num_threads(1)
    work = Bench(next(c for c in suites.cases(suite, Options()) if c.label == label), "cpu").work("ours")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        work()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="kernels", help="a suite of the benchmarks (default: kernels)")
    parser.add_argument("--case", default="", metavar="TEXT", help="only cases with TEXT in their names")
    parser.add_argument("--seconds", type=float, default=1.5, metavar="S", help="of each case (default: 1.5)")
    parser.add_argument("--run", metavar="CASE", help=argparse.SUPPRESS)  # in the process that perf samples
    given = parser.parse_args()
    if given.run is not None:
        return run_case(given.suite, given.run, given.seconds)
    if missing := [program for program in ("perf", "objdump", "readelf") if shutil.which(program) is None]:
        sys.exit(f"hot_loops: {', '.join(missing)} not found: install Linux's perf and binutils")

    from vae_fast import _backend
    from vae_fast.bench import suites
    from vae_fast.bench.options import Options

    if _backend.C is None:
        sys.exit(f"hot_loops: the extension is not in use: {_backend.reason_missing}")
    try:
        labels = [c.label for c in suites.cases(given.suite, Options()) if given.case in c.label]
    except ValueError as error:
        sys.exit(f"hot_loops: {error}")
    if not labels:
        sys.exit(f"hot_loops: --case {given.case}: no case of {given.suite} has that in its name")

    def output_of(*command):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    library = str(Path(_backend.C.__file__).resolve())
    instructions = instructions_of(output_of("objdump", "-d", "--no-show-raw-insn", library))
    segments = output_of("readelf", "-lW", library)
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/samples"
        for label in labels:
            again = [sys.executable, __file__, "--suite", given.suite, "--seconds", str(given.seconds), "--run", label]
            done = subprocess.run(["perf", "record", "-o", data, *again], capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"hot_loops: perf record failed: {(done.stderr.strip().splitlines() or ['it says nothing'])[-1]}")
            script = output_of("perf", "script", "-i", data, "-F", "ip,sym,dso", "--show-mmap-events")
            print("\n".join([label, *report(*samples_of(script, segments, library), instructions)]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Compile all CUDA code without a GPU and read the compiler's report: no spills, no stack frames, no warnings.

Every csrc/cuda/*.cu becomes machine code for each architecture (NAME.sm_90.cubin; its host half is compiled by the native tests), and
the host files whose code depends on VF_WITH_CUDA are checked against torch's headers, all in one translation unit, since the headers take
twenty times as long to read as a file of ours: what two files define, in anonymous namespaces too, must therefore differ in name. A CPU
build of torch carries all of those headers but a generated one, which -DC10_USING_CUSTOM_GENERATED_MACROS stands in for.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
# Begun first, so that no core waits for one of them at the end: the kernels that expand the table of terms.
LONGEST = ["row_terms_bf16", "row_terms_f16", "row_terms_any_f64", "row_terms_any", "row_terms_f32", "sample_halves", "sample_any_f64"]


@dataclass
class Unit:
    """One compiler run and what it said."""

    name: str
    command: list[str]
    report: Path | None = None  # where what it said goes, if it succeeds
    environment: dict[str, str] = field(default_factory=dict)  # beside that of this process
    seconds: float = 0.0
    failed: bool = False
    log: str = ""
    kernels: dict[str, Usage] = field(default_factory=dict)


@dataclass
class Usage:
    """What a kernel takes, by the assembler's report."""

    registers: int = 0
    stack: int = 0
    spills: int = 0


def find_nvcc() -> str | None:
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if home and (Path(home) / "bin" / "nvcc").exists():
            return str(Path(home) / "bin" / "nvcc")
    on_path = shutil.which("nvcc")
    if on_path:
        return on_path
    usual = Path("/usr/local/cuda/bin/nvcc")
    return str(usual) if usual.exists() else None


def toolkit(nvcc: str) -> Path | None:
    """The toolkit's folder, with bin and include; nvcc may be a link or a wrapper, so it is asked."""
    said = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull], capture_output=True, text=True)
    for root in re.findall(r"TOP=(\S+)", said.stderr):
        if (Path(root).resolve() / "include" / "cuda_runtime_api.h").exists():
            return Path(root).resolve()
    return None


def depends_on_cuda(path: Path, seen: set[Path] | None = None) -> bool:
    """Whether a file, or a file of ours that it includes, has code for CUDA builds only. kernels.h declares, so it does not count."""
    seen = set() if seen is None else seen
    if path in seen or not path.exists() or path.name == "kernels.h":
        return False
    seen.add(path)
    text = path.read_text()
    if re.search(r"^\s*#\s*if.*\bVF_WITH_CUDA\b", text, re.MULTILINE):
        return True
    included = re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE)
    return any(depends_on_cuda((path.parent / name).resolve(), seen) for name in included)


def kernel_unit(nvcc: str, source: Path, arch: str, target: Path) -> Unit:
    command = [nvcc, "-std=c++17", "-O3", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-DVF_WITH_CUDA", "-Xptxas", "-v"]
    command += ["--Werror", "all-warnings", str(source), "-o", str(target)]
    name, report, ccache = f"{source.name} sm_{arch}", target.with_suffix(".log"), shutil.which("ccache")
    if ccache is None:
        return Unit(name, [*command, "-cubin"], report)
    # ccache takes a call without -c for a link. Of two phases nvcc's last counts, and flags from the environment come last; as ccache does
    # not tell them apart, these calls have a namespace of their own.
    environment = {"NVCC_APPEND_FLAGS": f"{os.environ.get('NVCC_APPEND_FLAGS', '')} -cubin", "CCACHE_NAMESPACE": "cubin"}
    return Unit(name, [ccache, *command, "-c"], report, environment | {"CCACHE_BASEDIR": str(ROOT), "CCACHE_NOHASHDIR": "1"})


def kernel_units(nvcc: str, architectures: list[str], out: Path) -> list[Unit]:
    sources = sorted((CSRC / "cuda").glob("*.cu"), key=lambda p: (LONGEST.index(p.stem) if p.stem in LONGEST else len(LONGEST), p.stem))
    return [kernel_unit(nvcc, source, arch, out / f"{source.stem}.sm_{arch}.cubin") for source in sources for arch in architectures]


def glue_unit(nvcc: str, out: Path) -> Unit:
    """The host files as one translation unit."""
    sources = [p for p in sorted([*CSRC.glob("*.cpp"), *(CSRC / "ops").glob("*.cpp")]) if depends_on_cuda(p)]
    try:
        from torch.utils import cpp_extension
    except ImportError:
        sys.exit("cuda_gate: torch is not importable, and its headers are needed for the host code (or pass --no-glue)")
    home = toolkit(nvcc)
    if home is None:
        sys.exit(f"cuda_gate: {nvcc} does not say where its headers are")
    together = out / "host.cpp"
    together.write_text("".join(f'#include "{p}"\n' for p in sources))
    # As torch's own build of an extension; the oldest standard that its headers of today accept.
    command = [
        os.environ.get("CXX", "g++"),
        "-std=c++20",
        "-fsyntax-only",
        "-fPIC",
        "-DVF_WITH_CUDA",
        "-DC10_USING_CUSTOM_GENERATED_MACROS",
    ]
    command += ["-DTORCH_EXTENSION_NAME=_C", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-parameter", f"-I{CSRC}"]
    for header in [*cpp_extension.include_paths(), str(home / "include"), sysconfig.get_paths()["include"]]:
        command += ["-isystem", header]
    return Unit(f"{len(sources)} host files", [*command, str(together)])


def read_report(text: str) -> dict[str, Usage]:
    """Kernels and what they use, from ptxas -v."""
    usages: dict[str, Usage] = {}
    current = Usage()
    for line in text.splitlines():
        if entry := re.search(r"Compiling entry function '(\S+)'", line):
            current = usages.setdefault(entry[1], Usage())
        if frame := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            current.stack = max(current.stack, int(frame[1]))
            current.spills = max(current.spills, int(frame[2]) + int(frame[3]))
        if used := re.search(r"Used (\d+) registers", line):
            current.registers = int(used[1])
    return usages


def run(unit: Unit) -> Unit:
    start = time.monotonic()
    done = subprocess.run(unit.command, capture_output=True, text=True, env=os.environ | unit.environment)
    unit.seconds = time.monotonic() - start
    unit.log = done.stderr + done.stdout
    unit.failed = done.returncode != 0
    unit.kernels = read_report(unit.log)
    if unit.report is not None and not unit.failed:
        unit.report.write_text(unit.log)
    print(f"  {unit.seconds:6.1f} s  {unit.name}{'  FAILED' if unit.failed else ''}", flush=True)
    return unit


def short_names(mangled: list[str]) -> dict[str, str]:
    """Readable kernel names: row_terms_kernel<float, Byte, true>."""
    filt = shutil.which("c++filt")
    if filt is None or not mangled:
        return {name: name for name in mangled}
    text = subprocess.run([filt], input="\n".join(mangled), capture_output=True, text=True).stdout.splitlines()
    names = {}
    for name, full in zip(mangled, text, strict=True):
        plain = re.sub(r"\(anonymous namespace\)::|vae_fast::|cuda::|void ", "", full)
        depth = 0
        for i, letter in enumerate(plain):  # up to the argument list
            depth += {"<": 1, ">": -1}.get(letter, 0)
            if letter == "(" and depth == 0:
                plain = plain[:i]
                break
        names[name] = plain
    return names


def table(units: list[Unit], architectures: list[str]) -> tuple[list[str], int]:
    """One line per kernel, and how many kernels spill or keep a stack frame on any architecture."""
    columns: dict[str, dict[str, Usage]] = {}
    for unit in units:
        for kernel, usage in unit.kernels.items():
            columns.setdefault(kernel, {})[unit.name.rpartition("sm_")[2]] = usage
    names = short_names(sorted(columns))
    width = max([len(n) for n in names.values()] + [6])
    lines = [f"{'kernel':{width}}  " + "  ".join(f"{'sm_' + a:>24}" for a in architectures)]
    bad = 0
    for kernel, name in sorted(names.items(), key=lambda pair: pair[1]):
        cells = []
        worst = 0
        for arch in architectures:
            u = columns[kernel].get(arch)
            cells.append(f"{u.registers:3d} regs {u.spills:4d} B spilled" if u else "-")
            worst = max(worst, u.spills + u.stack if u else 0)
        bad += worst > 0
        lines.append(f"{name:{width}}  " + "  ".join(f"{c:>24}" for c in cells) + ("  <-- spills" if worst else ""))
    return lines, bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1, help="compilers at a time")
    parser.add_argument("--arch", action="append", help="architecture without its dot, e.g. 90; may be repeated (default: 80 and 90)")
    parser.add_argument("--out", type=Path, help="where machine code goes (default: a temporary folder)")
    parser.add_argument("--if-present", action="store_true", help="without nvcc, say so and succeed")
    parser.add_argument("--no-glue", action="store_true", help="leave out the host code that needs torch's headers")
    args = parser.parse_args()
    architectures = args.arch or ["80", "90"]

    nvcc = find_nvcc()
    if nvcc is None:
        print("cuda_gate: nvcc was not found (CUDA_HOME, PATH, /usr/local/cuda): CUDA code is not checked", file=sys.stderr)
        return 0 if args.if_present else 1

    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        units = kernel_units(nvcc, architectures, out)
        if not units:
            print("cuda_gate: there is nothing in csrc/cuda", file=sys.stderr)
            return 1
        glue = [] if args.no_glue else [glue_unit(nvcc, out)]
        print(f"cuda_gate: {len(units)} kernel objects, {args.jobs} at a time", flush=True)
        with ThreadPoolExecutor(max(1, args.jobs)) as pool:
            done = list(pool.map(run, [*glue, *units]))

    failed = [u for u in done if u.failed]
    for unit in failed:
        log = unit.log.splitlines()
        print(f"\n{unit.name}: {' '.join(unit.command)}", *log[:40], sep="\n", file=sys.stderr)
        if len(log) > 40:
            print(f"... {len(log) - 40} lines more", file=sys.stderr)
    lines, bad = table(units, architectures)
    count = len(lines) - 1
    print("\n" + "\n".join(lines))
    files = f"{len(failed)} of {len(done)} files failed"
    print(f"\ncuda_gate: {count} kernels, {bad} with spills or stack frames, {files}, {time.monotonic() - start:.0f} s")
    return 1 if failed or bad or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())

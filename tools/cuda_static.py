"""Predict from the machine code how near the hot CUDA kernels come to the speed of memory: instructions issued against the bytes moved.

Every kernel in KERNELS is compiled for sm_90, disassembled, and its hot loop found by its structure: the one innermost loop on a way round
which a thread reads and writes the bytes that the table says (stores that a predicate may leave out count). A kernel that does not show
exactly one is refused: nothing is guessed. To the way round that loop comes the shortest way round the loop over rows.

    instructions per element = lanes (passes * loop + around) / columns

is held against the issue slots that memory leaves while it moves the element's bytes, of which EFFICIENCY can be filled; and the bytes that
resident threads have in flight against those that hide the latency of memory. The smaller share is predicted.

Where a thread takes a row of a tile that lies in shared memory (TILES), the element is that row: of the loop over tiles, its shortest way
through all innermost loops that reads and writes the given bytes beside them, and of each of these its way as often as a row needs it.
Where a row's lanes hold all of it (SOFTMAXES), likewise, through those loops alone that such a row goes through.

Where a thread takes a component of a cell (CELLS), the element is a parameter, and what a few threads do to combine a cell's components
counts as often as their warps are among the block's. Of a branch that a term takes for some values both sides count.

What arithmetic limits (NESTS) has an innermost loop over dimensions or components, found by the multiply-adds that a way round it issues,
in a loop over tiles, of whose ways that read and write the bytes of a full tile and take so many exponentials the shortest counts:

    instructions per element = sum over kernels of (way over a tile + ways round the inner loop) / elements of the tile

is held against the formula's operations, two to an issue slot, or against its exponentials, one to eight. It is a prediction: caches,
clocks, bank conflicts, tails of the grid and the launch are not in it, nor what is not in these loops.

    python tools/cuda_static.py             compare with benchmarks/static/sm_90.json, and fail where a kernel is more than 3% heavier
    python tools/cuda_static.py --write     write that table
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cuda_gate
import sass
from cuda_grouped import CELLS, SOFTMAXES, THREADS, Cells, Softmax
from cuda_nests import NESTS, Arithmetic, Nest

ROOT = cuda_gate.ROOT
TABLE = ROOT / "benchmarks" / "static" / "sm_90.json"
PROBES = ROOT / "benchmarks" / "static" / "kernels"
SLACK = 1.03
EFFICIENCY = 0.8  # of the issue slots: what well-fed kernels reach
EXPONENTIAL = 8  # issue slots of a warp that the unit of exponentials, four lanes wide, takes for one
LATENCY = 800e-9  # seconds from a load to its data while memory is busy
SHARED = 227 << 10  # bytes of a multiprocessor's shared memory; a block takes 1 KiB besides its own
PROCESSORS, SLOTS, CLOCK = 132, 4, 1.98e9  # multiprocessors, warp instructions a cycle, cycles a second: both H100 SXM and H200
COPY = {"H100": 3.0e12, "H200": 4.3e12}  # bytes a second, read and written together: nine tenths of the data sheets'


@dataclass(frozen=True)
class Kernel:
    """A hot kernel, where it is, and the shape that it is judged at."""

    name: str
    source: Path
    function: str  # part of the mangled name
    read: int  # bytes of a thread, one way round the loop
    written: int
    elements: int  # of a thread, one way round
    columns: int  # elements of a row
    lanes: int  # threads of a row
    bytes: float  # moved per element, once each
    width: int = 16  # bytes of the loop's widest access
    target: float = 0.9


def row_terms(name: str, file: str, grad: bool, read: int, written: int, elements: int, size: float) -> Kernel:
    function = f"row_terms_kernelI{'f' if file == 'f32' else 'NS0_8BFloat16E'}Lb{grad:d}E"
    return Kernel(name, PROBES / f"row_terms_{file}.cu", function, read, written, elements, 784, 8, size)


def logsumexp(name: str, function: str, read: int, written: int, size: float) -> Kernel:
    return Kernel(name, cuda_gate.CSRC / "cuda" / "logsumexp.cu", function, read, written, 8, 784, 8, size)


KERNELS = [
    row_terms("bernoulli_logits f32, forward and gradient, D=784", "f32", True, 64, 64, 8, 12),
    row_terms("bernoulli_logits f32, x uint8, forward and gradient, D=784", "f32", True, 40, 64, 8, 9),
    row_terms("bernoulli_logits f32, forward, D=784", "f32", False, 64, 0, 8, 8),
    row_terms("bernoulli_logits bf16, forward and gradient, D=784", "bf16", True, 64, 32, 16, 6),
    row_terms("bernoulli_logits bf16, x uint8, forward and gradient, D=784", "bf16", True, 48, 32, 16, 5),
    row_terms("bernoulli_logits bf16, forward, D=784", "bf16", False, 64, 0, 16, 4),
    logsumexp("logsumexp f32, forward, K=784", "logsumexp_vectors_kernelIfE", 32, 0, 4),
    logsumexp("logsumexp f32, backward, K=784", "logsumexp_vectors_backward_kernelIfE", 32, 32, 8),
    logsumexp("logsumexp bf16, forward, K=784", "logsumexp_vectors_kernelINS0_8BFloat16E", 16, 0, 2),
    logsumexp("logsumexp bf16, backward, K=784", "logsumexp_vectors_backward_kernelINS0_8BFloat16E", 16, 16, 4),
]


@dataclass(frozen=True)
class Tile:
    """A kernel that brings tiles of rows to shared memory, a thread each."""

    name: str
    source: Path
    function: str
    ways: tuple[float, ...]  # round each innermost loop, per row
    read: int  # bytes of a thread beside those loops
    written: int
    bytes: int  # moved per row, once each
    copied: int  # of them, to shared memory
    shared: int  # bytes of shared memory per row
    target: float = 0.9


def mdn(components: int, dims: int) -> list[Tile]:
    """Both passes of a mixture whose parameters come with each row."""
    columns = [dims, components, components * dims, components * dims]  # y, logits, means, scales
    row, copies = 4 * sum(columns), [n / 4 for n in columns]  # bytes, and copies of 16 bytes
    source, passes = cuda_gate.CSRC / "cuda" / "mdn.cu", [float(components)] * 4  # the largest logit, their sum, the densities, theirs
    name, of_dims = f"mdn f32, {{}}, K={components} D={dims}", f"ILi{dims}E"
    return [
        Tile(name.format("forward"), source, "mdn_rows_kernel" + of_dims, (*copies, *passes), 0, 4, row + 4, row, row),
        Tile(
            name.format("backward"),
            source,
            "mdn_rows_backward_kernel" + of_dims,
            (*copies, *passes, float(components), *copies),
            4,
            0,
            2 * row + 4,
            row,
            row + 4 * components,
        ),
    ]


TILES = mdn(5, 2)


def nvdisasm() -> str | None:
    """The disassembler: the toolkit's, or the one of the pinned package."""
    if on_path := shutil.which("nvdisasm"):
        return on_path
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(root).glob("*/bin/nvdisasm")):
            return str(found)
    return None


def newest_source() -> float:
    return max(p.stat().st_mtime for p in [*cuda_gate.CSRC.rglob("*"), *PROBES.glob("*")] if p.is_file())


def compiled(nvcc: str, source: Path, out: Path) -> tuple[str, dict[str, cuda_gate.Usage]]:
    """The listing of a source's machine code and what its kernels use; what is in `out` is taken if it is newer than every source."""
    cubin = out / f"{source.stem}{'.probe' if source.parent == PROBES else ''}.sm_90.cubin"
    report = cubin.with_suffix(".log")
    if not (cubin.exists() and report.exists() and min(cubin.stat().st_mtime, report.stat().st_mtime) > newest_source()):
        unit = cuda_gate.run(cuda_gate.kernel_unit(nvcc, source, "90", cubin))
        if unit.failed:
            sys.exit(f"cuda_static: {source} does not compile\n{unit.log}")
    done = subprocess.run([nvdisasm() or "nvdisasm", "-c", str(cubin)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"cuda_static: nvdisasm failed on {cubin}: {done.stderr.strip()}")
    return done.stdout, cuda_gate.read_report(report.read_text())


def blocks_of(name: str, function: str, listing: str) -> tuple[str, list[sass.Block]]:
    """The one function of that name, and its blocks."""
    functions = sass.functions(listing)
    names = [one for one in functions if function in one]
    if len(names) != 1:
        raise sass.RefusalError(f"{name}: {len(names)} functions are called {function}")
    return names[0], sass.blocks_of(functions[names[0]])


Streaming = Kernel | Tile | Softmax | Cells


def row_of(
    one: Streaming, issued: float, kept: dict[str, object], registers: int, resident_blocks: int, in_flight: int
) -> dict[str, object]:
    """A row of the table, of what memory limits; `kept` is what it says of the loops."""
    return {
        "kernel": one.name,
        "instructions_per_element": round(issued, 1),
        **kept,
        "bytes_per_element": one.bytes,
        "registers": registers,
        "resident_blocks": resident_blocks,
        "bytes_in_flight": in_flight,
        "predicted_share": {gpu: round(share(issued, one.bytes, in_flight, copy), 2) for gpu, copy in COPY.items()},
        "target": one.target,
    }


def count(kernel: Kernel, listing: str, usages: dict[str, cuda_gate.Usage]) -> dict[str, object]:
    """A row of the table. Refusal where the kernel's code does not show one hot loop."""
    name, blocks = blocks_of(kernel.name, kernel.function, listing)
    try:
        loop, way = sass.hot_loop(blocks, kernel.read, kernel.written, kernel.width)
    except sass.RefusalError as refusal:
        raise sass.RefusalError(f"{kernel.name}: {refusal}") from None
    around = sass.around(blocks, loop)
    passes = math.ceil(kernel.columns / (kernel.lanes * kernel.elements))
    issued = kernel.lanes * (passes * way.instructions + around) / kernel.columns
    registers = usages[name].registers
    in_flight = resident(registers) * THREADS * kernel.read
    kept: dict[str, object] = {
        "of_the_loop": {kind: round(n / kernel.elements, 2) for kind, n in way.counts},
        "around_the_loop_per_row": around,
    }
    return row_of(kernel, issued, kept, registers, resident(registers), in_flight)


def count_tile(tile: Tile, listing: str, usages: dict[str, cuda_gate.Usage]) -> dict[str, object]:
    """A row of the table, as `count`'s. Of the resident blocks half are taken to wait for their tiles at a time."""
    name, blocks = blocks_of(tile.name, tile.function, listing)
    try:
        loops, around = sass.staged(blocks, tile.read, tile.written)
        if len(loops) != len(tile.ways):
            raise sass.RefusalError(f"{len(loops)} innermost loops: expected {len(tile.ways)}")
    except sass.RefusalError as refusal:
        raise sass.RefusalError(f"{tile.name}: {refusal}") from None
    issued = around.instructions + sum(way.instructions * times for way, times in zip(loops, tile.ways, strict=True))
    blocks_resident = min(resident(usages[name].registers), SHARED // (tile.shared * THREADS + 1024))
    in_flight = blocks_resident * THREADS * tile.copied // 2
    kept: dict[str, object] = {"of_the_loops": [way.instructions for way in loops], "around_the_loops": around.instructions}
    return row_of(tile, issued, kept, usages[name].registers, blocks_resident, in_flight)


def count_softmax(row: Softmax, listing: str, usages: dict[str, cuda_gate.Usage]) -> dict[str, object]:
    """A row of the table, as `count`'s."""
    name, blocks = blocks_of(row.name, row.function, listing)
    try:
        loops, around = sass.pieced(blocks, row.loops, row.read, 0)
    except sass.RefusalError as refusal:
        raise sass.RefusalError(f"{row.name}: {refusal}") from None
    steps = math.ceil(math.log2(row.columns / row.elements))  # of a sum over lanes
    times = (1, steps, steps, 1)[: len(loops)]
    issued = (around.instructions + sum(way.instructions * n for way, n in zip(loops, times, strict=True))) / row.elements
    registers = usages[name].registers
    in_flight = resident(registers) * THREADS * row.loops[0][1]
    kept: dict[str, object] = {"of_the_loops": [way.instructions for way in loops], "around_the_loops": around.instructions}
    return row_of(row, issued, kept, registers, resident(registers), in_flight)


def count_cells(one: Cells, listing: str, usages: dict[str, cuda_gate.Usage]) -> dict[str, object]:
    """A row of the table, as `count_tile`'s. An element is a parameter. The loops that combine go over a cell's components, or halve the
    threads that share them by shuffles."""
    mangled, blocks = blocks_of(one.name, one.function, listing)
    try:
        alone, whole, loops, around = sass.cells(blocks, one.read, one.written)
    except sass.RefusalError as refusal:
        raise sass.RefusalError(f"{one.name}: {refusal}") from None
    over_components, halvings = math.ceil(one.components / one.reducers), one.reducers.bit_length() - 1
    combining = whole.instructions - alone.instructions
    combining += sum(way.instructions * (halvings if shuffles else over_components) for way, shuffles in loops)
    warps = math.ceil(one.cells * one.reducers / 32) / (THREADS // 32)
    of_tile = alone.instructions + warps * combining + around / one.tiles
    issued = of_tile * THREADS / (one.cells * one.components * one.parameters)
    registers = usages[mangled].registers
    in_flight = resident(registers) * THREADS * one.read // 2
    kept: dict[str, object] = {"of_a_component": dict(alone.counts), "combining": combining, "around_the_tiles": around}
    return row_of(one, issued, kept, registers, resident(registers), in_flight)


def count_nest(name: str, nest: Nest, listing: str, usages: dict[str, cuda_gate.Usage]) -> tuple[float, dict[str, object]]:
    """Instructions per element of one kernel, and what of it the table keeps."""
    mangled, blocks = blocks_of(name, nest.function, listing)
    try:
        loop, way = sass.working_loop(blocks, *nest.multiply_adds, nest.accesses)
        tiles = [
            (sass.ways_through(blocks, loop, read, written, powers).instructions, times) for read, written, powers, times in nest.tiles
        ]
        filling = 0 if nest.filling is None else sass.filling(blocks, loop, nest.filling[0]).instructions * nest.filling[1]
    except sass.RefusalError as refusal:
        raise sass.RefusalError(f"{name}, {nest.function}: {refusal}") from None
    number = sum(times for _, times in tiles)
    around = (sum(one * times for one, times in tiles) / number + filling) / (nest.inner * nest.elements)
    kept = {
        "kernel": nest.function,
        "of_the_loop": {kind: round(n / nest.elements, 2) for kind, n in way.counts},
        "around_the_loop": round(around, 2),
        "registers": usages[mangled].registers,
        "resident_blocks": resident(usages[mangled].registers),
    }
    return way.instructions / nest.elements + around, kept


def count_arithmetic(row: Arithmetic, code: dict[Path, tuple[str, dict[str, cuda_gate.Usage]]]) -> dict[str, object]:
    """A row of the table, as `count`'s."""
    counted = [count_nest(row.name, nest, *code[nest.path]) for nest in row.nests]
    issued = sum(one for one, _ in counted)
    return {
        "kernel": row.name,
        "instructions_per_element": round(issued, 2),
        "operations_per_element": row.operations,
        "kernels": [kept for _, kept in counted],
        "predicted_share": {gpu: round(arithmetic_share(issued, row.operations, row.exponentials), 2) for gpu in COPY},
        "target": row.target,
    }


def resident(registers: int) -> int:
    """Blocks of a multiprocessor, as far as registers decide."""
    return min(2048 // THREADS, 65536 // (-(-registers // 8) * 8 * THREADS))


def arithmetic_share(issued: float, operations: int, exponentials: bool = False) -> float:
    """Of the multiply-adds that every issue slot could hold, two operations each; or, of operations that are `exponentials`, of what their
    unit can take, at most 1."""
    if exponentials:
        return min(1.0, EFFICIENCY * EXPONENTIAL * operations / issued)
    return EFFICIENCY * operations / (2.0 * issued)


def budget(size: float, copy: float) -> float:
    """Instructions of a thread that can be issued while memory moves `size` bytes."""
    return PROCESSORS * SLOTS * 32 * CLOCK * size / copy


def share(issued: float, size: float, in_flight: int, copy: float) -> float:
    """Of the bandwidth of a copy, at most 1."""
    return min(1.0, EFFICIENCY * budget(size, copy) / issued, in_flight / (copy / PROCESSORS * LATENCY))


def heavier(table: list[dict[str, object]], before: list[dict[str, object]]) -> list[str]:
    """What is wrong with the table beside the committed one: kernels that got heavier, that are new, that are gone."""
    known = {row["kernel"]: row for row in before}
    wrong = [f"{name}: it is in the committed table alone" for name in known if name not in {row["kernel"] for row in table}]
    for row in table:
        old = known.get(row["kernel"])
        if old is None:
            wrong.append(f"{row['kernel']}: it is not in the committed table")
            continue
        now, then = float(str(row["instructions_per_element"])), float(str(old["instructions_per_element"]))
        if now > SLACK * then:
            wrong.append(f"{row['kernel']}: {now} instructions per element, {then} in the committed table")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1, help="compilers at a time")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "cuda", help="where the gate left its machine code, and more goes")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")
    args = parser.parse_args()
    nvcc = cuda_gate.find_nvcc()
    if nvcc is None or nvdisasm() is None:
        print(f"cuda_static: {'nvcc' if nvcc is None else 'nvdisasm'} was not found: nothing is counted", file=sys.stderr)
        return 1
    start = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    sources = sorted({one.source for one in [*KERNELS, *TILES, *SOFTMAXES, *CELLS]} | {nest.path for row in NESTS for nest in row.nests})
    with ThreadPoolExecutor(max(1, args.jobs)) as pool:
        code = dict(zip(sources, pool.map(lambda source: compiled(nvcc, source, args.out), sources), strict=True))
    try:
        table = [count(kernel, *code[kernel.source]) for kernel in KERNELS] + [count_tile(tile, *code[tile.source]) for tile in TILES]
        table += [count_softmax(row, *code[row.source]) for row in SOFTMAXES]
        table += [count_cells(one, *code[one.source]) for one in CELLS]
        table += [count_arithmetic(row, code) for row in NESTS]
    except sass.RefusalError as refusal:
        print(f"cuda_static: {refusal}", file=sys.stderr)
        return 1
    streaming: list[Streaming] = [*KERNELS, *TILES, *SOFTMAXES, *CELLS]
    width = max(len(one.name) for one in streaming)
    print(f"{'kernel':{width}}  issued  budget H200  registers  blocks  KiB in flight  share H100  H200  target")
    for row, kernel in zip(table, streaming, strict=False):
        shares = row["predicted_share"]
        assert isinstance(shares, dict)
        cells = f"{row['instructions_per_element']!s:>6}  {budget(kernel.bytes, COPY['H200']):11.0f}  {row['registers']!s:>9}"
        cells += f"  {row['resident_blocks']!s:>6}  {int(str(row['bytes_in_flight'])) / 1024:13.0f}"
        print(f"{kernel.name:{width}}  {cells}  {shares['H100']:10.0%}  {shares['H200']:4.0%}  {kernel.target:6.0%}")
    print(f"\n{'kernels':{width}}  issued  operations  share of the unit  target")
    for row, nested in zip(table[len(streaming) :], NESTS, strict=True):
        issued = float(str(row["instructions_per_element"]))
        cells = f"{issued:6.2f}  {nested.operations:10}  {arithmetic_share(issued, nested.operations, nested.exponentials):17.0%}"
        print(f"{nested.name:{width}}  {cells}  {nested.target:6.0%}")
    if args.write:
        TABLE.write_text("[\n" + ",\n".join(f"  {json.dumps(row)}" for row in table) + "\n]\n")
    wrong = heavier(table, json.loads(TABLE.read_text()) if TABLE.exists() else [])
    print(f"\ncuda_static: {len(table)} kernels, {len(wrong)} heavier than committed or unknown, {time.monotonic() - start:.0f} s")
    for line in wrong:
        print(f"cuda_static: {line} (python tools/cuda_static.py --write, and say in the commit why)", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""The counter of machine code: on listings written here, and on two small kernels whose counts are known, where nvcc and nvdisasm are."""

import importlib
import json
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture
def tool(monkeypatch):
    """tools/NAME.py, which is no package."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module


# A loop over rows (.L_row) around a loop over columns (.L_col), which has a short cut and a store that a predicate may leave out.
LISTING = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_row:
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0020*/               @P3 BRA `(.L_skip) ;
        /*0030*/                   MUFU.RCP R9, R9 ;
.L_skip:
        /*0040*/                   LDG.E R8, desc[UR4][R6.64] ;
.L_col:
        /*0050*/               @P1 LDG.E.128 R12, desc[UR4][R4.64] ;
        /*0060*/              @!P1 LDG.E R12, desc[UR4][R4.64] ;
        /*0070*/               @P2 BRA `(.L_slow) ;
        /*0080*/                   FFMA R12, R12, R13, R14 ;
        /*0090*/                   BRA `(.L_join) ;
.L_slow:
        /*00a0*/                   LDG.E.64 R16, desc[UR4][R4.64] ;
        /*00b0*/                   MUFU.EX2 R12, R12 ;
        /*00c0*/                   FMUL R12, R12, R13 ;
.L_join:
        /*00d0*/               @P4 STG.E.128 desc[UR4][R4.64], R12 ;
        /*00e0*/               @P0 BRA `(.L_col) ;
        /*00f0*/                   STG.E desc[UR4][R6.64], R8 ;
        /*0100*/               @P5 BRA `(.L_row) ;
        /*0110*/                   EXIT ;
"""


def test_a_way_round_the_hot_loop_is_chosen_by_its_bytes(tool):
    sass = tool("sass")
    blocks = sass.blocks_of(sass.functions(LISTING)["kernel"])
    loop, way = sass.hot_loop(blocks, 16, 16)  # the wider of the two loads under opposite predicates
    assert dict(way.counts) == {"fma": 1, "memory": 3, "other": 3} and way.instructions == 7
    _, slow = sass.hot_loop(blocks, 24, 16)
    assert dict(slow.counts) == {"fma": 1, "memory": 4, "mufu": 1, "other": 2}
    assert sass.around(blocks, loop) == 5  # .L_row without the reciprocal, .L_skip, and what follows the loop


def test_what_is_not_one_loop_is_refused(tool):
    sass = tool("sass")
    blocks = sass.blocks_of(sass.functions(LISTING)["kernel"])
    with pytest.raises(sass.RefusalError, match=r"0 innermost loops read 32 and write 16 .* \[\(16, 16\), \(24, 16\)\]"):
        sass.hot_loop(blocks, 32, 16)
    twice = LISTING.replace("        /*0110*/                   EXIT ;\n", "") + "".join(
        line.replace(".L_", ".L_2") + "\n" for line in LISTING.splitlines()[3:]
    )
    with pytest.raises(sass.RefusalError, match="2 innermost loops read 16"):
        sass.hot_loop(sass.blocks_of(sass.functions(twice)["kernel"]), 16, 16)
    with pytest.raises(sass.RefusalError, match="a branch to nowhere known"):
        sass.blocks_of(sass.functions(LISTING.replace("`(.L_slow)", "`(.L_lost)"))["kernel"])


# A loop over tiles (.L_tile) that may read 16 bytes or 4, around a loop of three multiply-adds (.L_step), and then an exponential or none.
NESTED = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_tile:
        /*0010*/               @P0 BRA `(.L_narrow) ;
        /*0020*/                   LDG.E.128 R8, desc[UR4][R6.64] ;
        /*0030*/                   BRA `(.L_step) ;
.L_narrow:
        /*0040*/                   LDG.E R8, desc[UR4][R6.64] ;
.L_step:
        /*0050*/                   LDS.128 R12, [R4] ;
        /*0060*/                   FFMA R12, R12, R13, R14 ;
        /*0070*/               @P6 BRA `(.L_long) ;
        /*0080*/                   FFMA R13, R12, R13, R14 ;
        /*0090*/                   FFMA R14, R12, R13, R14 ;
        /*00a0*/                   BRA `(.L_end) ;
.L_long:
        /*00b0*/                   FMUL R13, R13, R13 ;
        /*00b8*/                   FMUL R13, R13, R13 ;
        /*00c0*/                   FFMA R13, R12, R13, R14 ;
        /*00d0*/                   FFMA R14, R12, R13, R14 ;
.L_end:
        /*00e0*/               @P1 BRA `(.L_step) ;
        /*00f0*/               @P2 BRA `(.L_more) ;
        /*0100*/                   MUFU.EX2 R9, R9 ;
        /*0110*/                   FADD R9, R9, R10 ;
.L_more:
        /*0120*/               @P3 BRA `(.L_tile) ;
        /*0130*/                   EXIT ;
"""


def test_ways_through_nested_loops_are_the_shortest_that_do_what_is_asked(tool):
    sass = tool("sass")
    blocks = sass.blocks_of(sass.functions(NESTED)["kernel"])
    loop, way = sass.working_loop(blocks, "FFMA", 3)
    assert dict(way.counts) == {"fma": 3, "memory": 1, "other": 3}  # of the two ways round, the one without products
    through = {key: sass.ways_through(blocks, loop, *key).instructions for key in [(16, 0, 0), (4, 0, 0), (16, 0, 1), (4, 0, 1)]}
    assert through == {(16, 0, 0): 5, (4, 0, 0): 4, (16, 0, 1): 7, (4, 0, 1): 6}
    with pytest.raises(sass.RefusalError, match="no way through the innermost loop reads 20 bytes, writes 0 and takes 0 exponentials"):
        sass.ways_through(blocks, loop, 20, 0, 0)
    with pytest.raises(sass.RefusalError, match="0 innermost loops without access to device memory issue FFMA 2 times"):
        sass.working_loop(blocks, "FFMA", 2)
    assert sass.working_loop(blocks, "FFMA", 3, 1)[0].head == loop.head
    with pytest.raises(sass.RefusalError, match=r"0 innermost loops .* issue FFMA 3 times beside 2 accesses to shared memory"):
        sass.working_loop(blocks, "FFMA", 3, 2)
    columns = sass.blocks_of(sass.functions(LISTING)["kernel"])
    with pytest.raises(sass.RefusalError, match="0 innermost loops without access to device memory"):
        sass.working_loop(columns, "FFMA", 1)  # it reads device memory


def test_a_loop_that_fills_a_tile_is_found_by_what_it_reads(tool):
    sass = tool("sass")
    fill = ".L_fill:\n        /*0046*/ LDG.E.64 R20, desc[UR4][R6.64] ;\n        /*0048*/ @P5 BRA `(.L_fill) ;\n"
    blocks = sass.blocks_of(sass.functions(NESTED.replace(".L_step:\n", fill + ".L_step:\n"))["kernel"])
    loop, _ = sass.working_loop(blocks, "FFMA", 3)
    assert sass.filling(blocks, loop, 8).instructions == 2
    with pytest.raises(sass.RefusalError, match="0 loops beside the innermost one read 4 bytes"):
        sass.filling(blocks, loop, 4)


def test_a_loop_over_tiles_is_counted_beside_the_loops_in_it(tool):
    sass = tool("sass")
    blocks = sass.blocks_of(sass.functions(NESTED)["kernel"])
    (step,), around = sass.staged(blocks, 4, 0)
    assert step.instructions == 8 and around.instructions == 4  # the longest way round the step, the shortest round the tile without it
    assert sass.staged(blocks, 16, 0)[1].instructions == 5
    with pytest.raises(sass.RefusalError, match="no way round through 1 innermost loops reads 20 bytes and writes 0 beside them"):
        sass.staged(blocks, 20, 0)
    alone = NESTED.replace("@P3 BRA `(.L_tile)", "EXIT")
    with pytest.raises(sass.RefusalError, match="1 loops, of which 0 hold the 1 innermost ones"):
        sass.staged(sass.blocks_of(sass.functions(alone)["kernel"]), 4, 0)


def test_of_the_loops_only_those_named_are_passed(tool):
    sass = tool("sass")
    blocks = sass.blocks_of(sass.functions(NESTED)["kernel"])
    (step,), around = sass.pieced(blocks, ((0, 0, 0),), 4, 0)
    assert step.instructions == 8 and around.instructions == 4
    with pytest.raises(sass.RefusalError, match="innermost loop 0 reads 16 and writes 0 on no way round"):
        sass.pieced(blocks, ((0, 16, 0),), 4, 0)
    with pytest.raises(sass.RefusalError, match="no way round through 1 innermost loops reads 20 bytes and writes 0 beside them"):
        sass.pieced(blocks, ((0, 0, 0),), 20, 0)
    with pytest.raises(sass.RefusalError, match="hold the 1 innermost ones"):
        sass.pieced(blocks, ((1, 0, 0),), 4, 0)


# A loop over pieces (.L_piece) around one over tiles (.L_tile), of whose threads some combine: a loop over components, one of shuffles.
CELLS = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_piece:
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0020*/                   IADD3 R3, R3, 0x1, RZ ;
.L_tile:
        /*0030*/                   LDG.E R8, desc[UR4][R6.64] ;
        /*0040*/               @P0 BRA `(.L_near) ;
        /*0050*/                   MUFU.RCP R9, R9 ;
        /*0060*/                   FMUL R9, R9, R10 ;
.L_near:
        /*0070*/               @P1 BRA `(.L_after) ;
        /*0080*/                   FADD R9, R9, R10 ;
.L_component:
        /*0090*/                   LDS R12, [R4] ;
        /*00a0*/                   MUFU.EX2 R12, R12 ;
        /*00b0*/               @P2 BRA `(.L_component) ;
.L_lanes:
        /*00c0*/                   SHFL.BFLY PT, R12, R12, R13, 0x1f ;
        /*00d0*/               @P3 BRA `(.L_lanes) ;
.L_after:
        /*00e0*/                   STG.E desc[UR4][R6.64], R8 ;
        /*00f0*/               @P4 BRA `(.L_tile) ;
        /*0100*/               @P5 BRA `(.L_piece) ;
        /*0110*/                   EXIT ;
"""


def test_threads_that_combine_are_counted_apart(tool):
    sass = tool("sass")
    blocks = sass.blocks_of(sass.functions(CELLS)["kernel"])
    alone, whole, loops, around = sass.cells(blocks, 4, 4)
    assert dict(alone.counts) == {"fma": 1, "memory": 2, "mufu": 1, "other": 3}  # both sides of the branch around the reciprocal
    assert whole.instructions == alone.instructions + 1 and around == 3
    assert [(way.instructions, shuffles) for way, shuffles in loops] == [(3, False), (2, True)]
    with pytest.raises(sass.RefusalError, match="no loop that holds others reads 8 bytes and writes 4"):
        sass.cells(blocks, 8, 4)


KERNEL = """
template <int kCount> __device__ __forceinline__ void kernel(const float4* in, float4* out, long count) {
#pragma unroll 1
  for (long i = threadIdx.x; i < count; i += blockDim.x) {
    float4 v = in[i];
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      asm volatile("fma.rn.f32 %0, %0, %1, %2;" : "+f"(v.x) : "f"(v.y), "f"(v.z));
      asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(v.w));
    }
    out[i] = v;
  }
}
extern "C" __global__ void nested(const float4* in, float* out, int tiles, int steps) {
  __shared__ float4 tile[256];
  float sum = 0.0f;
#pragma unroll 1
  for (int t = 0; t < tiles; ++t) {
    __syncthreads();
    tile[threadIdx.x] = in[t * 256 + threadIdx.x];
    __syncthreads();
#pragma unroll 1
    for (int s = 0; s < steps; ++s) {
      const float4 v = tile[s];
#pragma unroll
      for (int n = 0; n < 24; ++n) asm volatile("fma.rn.f32 %0, %0, %1, %2;" : "+f"(sum) : "f"(v.x), "f"(v.y));
    }
    asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(sum));
  }
  out[threadIdx.x] = sum;
}
extern "C" __global__ void eight(const float4* in, float4* out, long count) { kernel<8>(in, out, count); }
extern "C" __global__ void twenty(const float4* in, float4* out, long count) { kernel<20>(in, out, count); }
"""


def test_two_kernels_whose_counts_are_known(tool, tmp_path):
    """So many multiply-adds and exponentials a way round; addresses take up to two instructions of the multiply-add units more."""
    gate, static, sass = tool("cuda_gate"), tool("cuda_static"), tool("sass")
    nvcc, disassembler = gate.find_nvcc(), static.nvdisasm()
    if nvcc is None or disassembler is None:
        pytest.skip(f"{'nvcc' if nvcc is None else 'nvdisasm'} is not installed")
    source, cubin = tmp_path / "known.cu", tmp_path / "known.cubin"
    source.write_text(KERNEL)
    unit = gate.run(gate.kernel_unit(nvcc, source, "90", cubin))
    assert not unit.failed, unit.log
    functions = sass.functions(subprocess.run([disassembler, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout)
    for name, count in (("eight", 8), ("twenty", 20)):
        _, way = sass.hot_loop(sass.blocks_of(functions[name]), 16, 16)
        counts = dict(way.counts)
        assert counts["memory"] == 2 and counts["mufu"] == count and count <= counts["fma"] <= count + 2
        assert 2 * count + 2 < way.instructions <= 2 * count + 14
        assert unit.kernels[name].registers > 0
    blocks = sass.blocks_of(functions["nested"])
    loop, way = sass.working_loop(blocks, "FFMA", 24)
    assert dict(way.counts)["memory"] == 1 and 24 + 4 <= way.instructions <= 24 + 10  # the load, and the loop's own
    assert 8 <= sass.ways_through(blocks, loop, 16, 0, 1).instructions <= 30  # two barriers, load, store, exponential and the loop's own


def test_a_heavier_kernel_is_named(tool):
    static = tool("cuda_static")
    before = [{"kernel": "a", "instructions_per_element": 50.0}, {"kernel": "gone", "instructions_per_element": 1.0}]
    assert static.heavier([{"kernel": "a", "instructions_per_element": 51.4}], before[:1]) == []
    assert static.heavier([{"kernel": "a", "instructions_per_element": 51.6}], before) == [
        "gone: it is in the committed table alone",
        "a: 51.6 instructions per element, 50.0 in the committed table",
    ]
    assert static.heavier([{"kernel": "new", "instructions_per_element": 1.0}], []) == ["new: it is not in the committed table"]


def test_the_committed_table_is_of_the_kernels_that_are_counted(tool):
    static = tool("cuda_static")
    rows = json.loads(static.TABLE.read_text())
    everything = [*static.KERNELS, *static.TILES, *static.SOFTMAXES, *static.CELLS, *static.NESTS]
    assert [row["kernel"] for row in rows] == [one.name for one in everything]
    streaming = [*static.KERNELS, *static.TILES, *static.SOFTMAXES, *static.CELLS]
    for row, nest in zip(rows[len(streaming) :], static.NESTS, strict=True):
        share = static.arithmetic_share(row["instructions_per_element"], nest.operations, nest.exponentials)
        assert row["predicted_share"] == {gpu: pytest.approx(share, abs=0.01) for gpu in static.COPY}
    for row, kernel in zip(rows, streaming, strict=False):
        in_flight = row["bytes_in_flight"]
        for gpu, copy in static.COPY.items():
            predicted = static.share(row["instructions_per_element"], kernel.bytes, in_flight, copy)
            assert row["predicted_share"][gpu] == pytest.approx(predicted, abs=0.01)


def test_a_share_is_what_issue_and_latency_leave(tool):
    static = tool("cuda_static")
    assert static.budget(12, static.COPY["H200"]) == pytest.approx(93.4, abs=0.1)
    assert static.share(40.0, 12, 1 << 20, static.COPY["H200"]) == 1.0
    assert static.share(149.4, 12, 1 << 20, static.COPY["H200"]) == pytest.approx(0.5, abs=0.01)
    assert static.arithmetic_share(4.0, 4) == pytest.approx(0.4)  # half of the slots' two operations, and 0.8 of the slots
    assert static.arithmetic_share(12.8, 1, True) == pytest.approx(0.5)  # eight slots of 12.8, and 0.8 of the slots
    assert static.arithmetic_share(6.0, 1, True) == 1.0
    assert static.share(1.0, 12, 13030, static.COPY["H200"]) == pytest.approx(0.5, abs=0.01)  # 4.3e12 / 132 * 800e-9 bytes would do

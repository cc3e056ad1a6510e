// Mixtures over cells: a thread per component of a cell, as many cells to a block as fit. A component's parameters and derivatives stay in
// registers; shared memory has what the components of a cell have to know of each other, and a few threads per cell combine it.
#pragma once

#include "../math/cells.h"
#include "../math/discretized.h"
#include "groups.cuh"
#include "memory.cuh"

namespace vae_fast {
namespace cuda {

/// How cells are cut: lines of a row, in which they are equally far apart; pieces of a line, a block's at a time; tiles of a piece, whose
/// components are the block's threads.
struct CellPieces {
  static constexpr int kOfReducer = 8, kMostTiles = 8;

  int64_t number = 0, of_line = 0, of_row = 0;  // pieces
  int64_t lines = 1;                            // of a row
  int64_t line = 0;                             // cells of a line
  int32_t tiles = 1, cells = 1;                 // of a piece, of a tile
  int32_t of_cell = 1, of_component = 1;        // how far apart cells are, in threads; and components
  int32_t reducers = 1, reducer_bits = 0;       // threads that combine a cell's components: a power of two, all in one warp

  explicit CellPieces(const GroupArgs& args) {
    const bool across = args.inner > 1;  // neighbours in memory are of neighbouring cells, else they are neighbouring components
    lines = across ? args.outer : 1;
    line = across ? args.inner : args.outer * args.inner;
    const int64_t fit = args.components < kThreads ? kThreads / args.components : 1;
    cells = static_cast<int32_t>(fit < line ? fit : line > 0 ? line : 1);
    if (across && cells >= 8) cells -= cells % 8;  // 32 bytes of a parameter, the least that memory moves
    of_cell = across ? 1 : static_cast<int32_t>(args.components);
    of_component = across ? cells : 1;
    while (reducers < kWarp && 2 * reducers * cells <= kThreads && reducers * kOfReducer < args.components) reducers = 1 << ++reducer_bits;
    // What a piece costs beside its tiles is spread over several, where enough pieces are left for the device.
    const int64_t line_tiles = ceil_div(line, cells), enough = static_cast<int64_t>(processors()) * 16;
    while (tiles < kMostTiles && tiles < line_tiles && args.rows * lines * line_tiles >= 2 * tiles * enough) tiles *= 2;
    of_line = ceil_div(line_tiles, tiles);
    of_row = lines * of_line;
    number = args.rows * of_row;
  }
};

/// Where a cell of a piece has its parameters and data, in elements from where its row begins.
struct CellPlace {
  int64_t row, first;              // first: the piece's first cell, of its line
  int64_t params, data;            // of component 0
  int64_t params_step, data_step;  // from a cell to the next

  VF_DEVICE CellPlace(const GroupArgs& args, const CellPieces& pieces, int slots, int values, int64_t piece, int cell) {
    const int64_t line = quotient(piece, pieces.of_line), parameters = slots * args.components;
    const bool across = args.inner > 1;
    first = (piece - line * pieces.of_line) * (static_cast<int64_t>(pieces.tiles) * pieces.cells);
    row = pieces.lines == 1 ? line : quotient(line, pieces.lines);
    const int64_t before = (line - row * pieces.lines) * args.inner;
    params_step = across ? 1 : parameters;
    data_step = across ? 1 : values;
    params = before * parameters + (first + cell) * params_step;
    data = before * values + (first + cell) * data_step;
  }
};

/// What a term says of a component of a cell, whose parameters are `step` elements apart.
template <class Term, typename C>
struct CellComponent {
  C logit, density, d[Term::kSlots];

  VF_DEVICE void evaluate(const math::GroupNumbers<C>& numbers, const char* params, DType dtype, int64_t at, int64_t step,
                          const C (&x)[Term::kData]) {
    C p[Term::kSlots];
    load_any<Term::kSlots>(params, dtype, at, step, 0, Term::kSlots, p);
    Term::eval(x, p, numbers, density, d);
    logit = p[0];
  }
  VF_DEVICE void write(const math::CellShare<C>& of, char* grads, DType dtype, int64_t at, int64_t step) {
    d[0] = of.of_logit;
#pragma unroll
    for (int j = 1; j < Term::kSlots; ++j) d[j] = math::times(of.share, d[j]);
    store_any<Term::kSlots>(grads, dtype, at, step, 0, Term::kSlots, d);
  }
};

/// Where the value of a piece goes: to its row's, if that has no other.
template <typename C>
VF_DEVICE void put_value(const GroupArgs& args, const CellPieces& pieces, int64_t piece, double value) {
  if (pieces.of_row == 1) {
    static_cast<C*>(args.value)[piece] = static_cast<C>(value);
  } else {
    args.partials[piece] = value;
  }
}

/// The largest over the lanes that differ in the bits below `lanes`, in all of them.
template <typename C>
VF_DEVICE C largest_of_lanes(C v, int lanes) {
  for (int bit = 1; bit < lanes; bit *= 2) {
    const C other = __shfl_xor_sync(kFullMask, v, static_cast<unsigned>(bit));
    v = other > v ? other : v;
  }
  return v;
}

/// A tile in shared memory: of every component its logit and log-density, then its terms of the sums; of every cell the sums and the value.
template <typename C>
struct CellTile {
  C *weight, *joint, *total, *joint_total;
  double* value;

  /// Combines the components of every cell; for every thread of the block.
  VF_DEVICE void combine(const CellPieces& pieces, int cells, int components, bool with_value) const {
    const int thread = static_cast<int>(threadIdx.x), cell = thread >> pieces.reducer_bits, reducer = thread & (pieces.reducers - 1);
    if (thread / kWarp * kWarp >= cells << pieces.reducer_bits) return;
    const int step = pieces.reducers * pieces.of_component, at = cell * pieces.of_cell + reducer * pieces.of_component;
    const int end =
        cell < cells ? at + (components - reducer) * pieces.of_component : 0;  // lanes beyond the cells come to the shuffles alone
    C top = -math::infinity<C>(), joint_top = top, sum = C(0), joint_sum = C(0);
#pragma unroll 1
    for (int i = at; i < end; i += step) top = weight[i] > top ? weight[i] : top;
    top = math::shift_of(largest_of_lanes(top, pieces.reducers));
#pragma unroll 1
    for (int i = at; i < end; i += step) {
      const C logit = weight[i], e = math::exp_of_sum(logit - top), l = math::cell_joint(logit, top, joint[i]);
      joint_top = l > joint_top ? l : joint_top;
      sum += e;
      weight[i] = e;
      joint[i] = l;
    }
    joint_top = math::shift_of(largest_of_lanes(joint_top, pieces.reducers));
#pragma unroll 1
    for (int i = at; i < end; i += step) {
      const C e = math::exp_of_sum(joint[i] - joint_top);
      joint_sum += e;
      joint[i] = e;
    }
    sum = sum_lanes(sum, 1, pieces.reducers);
    joint_sum = sum_lanes(joint_sum, 1, pieces.reducers);
    if (reducer != 0 || cell >= cells) return;
    total[cell] = sum;
    joint_total[cell] = joint_sum;
    if (with_value) value[cell] = static_cast<double>(math::cell_value(joint_top, joint_sum, sum));
  }
};

/// Components up to kThreads.
template <class Term, typename C, bool kGrad>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 1
                                            : kGrad        ? 3
                                                           : 4)
    cells_kernel(const __grid_constant__ GroupArgs args, const __grid_constant__ math::GroupNumbers<C> numbers,
                 const __grid_constant__ CellPieces pieces) {
  __shared__ C weight[kThreads], joint[kThreads], total[kThreads], joint_total[kThreads];
  __shared__ double value[kThreads];
  const CellTile<C> tile{weight, joint, total, joint_total, value};
  const int thread = static_cast<int>(threadIdx.x), components = static_cast<int>(args.components);
  const bool across = pieces.of_cell == 1 && components > 1;
  const int cell = across ? thread % pieces.of_component : thread / pieces.of_cell;
  const int k = across ? thread / pieces.of_component : thread % pieces.of_cell;
  for (int64_t piece = blockIdx.x; piece < pieces.number; piece += gridDim.x) {
    CellPlace place(args, pieces, Term::kSlots, Term::kData, piece, cell);
    place.params += k * args.inner;
    const char *const params = row_start(args.params, place.row), *const data = row_start(args.x, place.row);
    char* const grads = kGrad ? row_start(args.grad, place.row) : nullptr;
    const C g = kGrad ? upstream_of<C>(args.row_grad, place.row) : C(0);
    const int64_t step = args.components * args.inner, left = pieces.line - place.first;
    int cells = left < static_cast<int64_t>(pieces.tiles) * pieces.cells ? static_cast<int>(left) : pieces.tiles * pieces.cells;
    double sum = 0.0;
#pragma unroll 1
    for (; cells > 0; cells -= pieces.cells) {
      const int here = cells < pieces.cells ? cells : pieces.cells;
      const bool used = cell < here && k < components;
      CellComponent<Term, C> component;
      if (used) {
        C x[Term::kData];
        load_any<Term::kData>(data, args.x.dtype, place.data, args.inner, 0, Term::kData, x);
        component.evaluate(numbers, params, args.params.dtype, place.params, step, x);
        weight[thread] = component.logit;
        joint[thread] = component.density;
      }
      __syncthreads();
      tile.combine(pieces, here, components, args.value != nullptr);
      __syncthreads();
      if constexpr (kGrad) {
        if (used) {
          const math::CellShare<C> of(g, joint[thread], joint_total[cell], weight[thread], total[cell]);
          component.write(of, grads, args.grad.dtype, place.params, step);
        }
      }
      if (args.value != nullptr && thread < kWarp) {
#pragma unroll 1
        for (int c = thread; c < here; c += kWarp) sum += value[c];
      }
      place.params += pieces.cells * place.params_step;
      place.data += pieces.cells * place.data_step;
    }
    if (args.value != nullptr && thread < kWarp) {
      sum = sum_lanes(sum, 1, kWarp);
      if (thread == 0) put_value<C>(args, pieces, piece, sum);
    }
  }
}

}  // namespace cuda
}  // namespace vae_fast

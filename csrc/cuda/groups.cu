// The terms of group_table.h.
#include "../group_table.h"
#include "cells_many.cuh"

namespace vae_fast {
namespace cuda {

namespace {

/// A row's value from those of its pieces, in their order.
template <typename C>
__global__ void __launch_bounds__(kThreads)
    cell_sums_kernel(C* value, const double* partials, int64_t rows, int64_t of_row, Groups groups) {
  __shared__ double shared[2][kWarps];
  const Place place(groups);
  int round = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * groups.rows_per_block;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * groups.rows_per_block; first < rows; first += stride) {
    const int64_t row = first + place.group;
    const bool active = place.used && row < rows;
    double sum = 0.0;
    for (int64_t t = place.lane; active && t < of_row; t += groups.lanes) sum += partials[row * of_row + t];
    sum = combine_group(sum, groups, place, shared, round, Sum());
    if (active && place.lane == 0) value[row] = static_cast<C>(sum);
  }
}

template <class Term, typename C>
void start(const GroupArgs& args, const CellPieces& pieces, cudaStream_t stream) {
  const math::GroupNumbers<C> numbers(args.number);
  const unsigned grid = capped_grid(pieces.number);
  if (args.components > kThreads) {
    VF_START((cells_many_kernel<Term, C>), grid, kThreads, stream, args, numbers, pieces, Groups::of_lanes(kThreads));
  } else if (args.grad.data != nullptr) {
    VF_START((cells_kernel<Term, C, true>), grid, kThreads, stream, args, numbers, pieces);
  } else {
    VF_START((cells_kernel<Term, C, false>), grid, kThreads, stream, args, numbers, pieces);
  }
}

template <typename C>
cudaError_t group_terms_of(const GroupArgs& args, cudaStream_t stream) {
  using namespace math;
  using Start = void (*)(const GroupArgs&, const CellPieces&, cudaStream_t);
  static constexpr Start kStart[] = {
#define VF_ROW(name, ...) &start<__VA_ARGS__, C>,
      VF_FOR_EACH_GROUP(VF_ROW)
#undef VF_ROW
  };
  if (args.term < 0 || args.term >= static_cast<int32_t>(sizeof(kStart) / sizeof(*kStart))) return cudaErrorInvalidValue;
  const CellPieces pieces(args);
  if (pieces.of_row != 1 && args.value != nullptr && args.partials == nullptr) return cudaErrorInvalidValue;
  if (pieces.number > 0) kStart[args.term](args, pieces, stream);
  if (pieces.of_row != 1 && args.value != nullptr && args.rows > 0) {
    const Groups groups = Groups::choose(args.rows, pieces.of_row, 4);
    VF_START(cell_sums_kernel<C>, capped_grid(ceil_div(args.rows, groups.rows_per_block)), kThreads, stream, static_cast<C*>(args.value),
             args.partials, args.rows, pieces.of_row, groups);
  }
  return cudaGetLastError();
}

}  // namespace

/// As many as there can be pieces: how many tiles make one depends on the device, which need not be the current one here.
int64_t group_terms_partials(const GroupArgs& args) {
  const CellPieces pieces(args);
  return args.rows * pieces.lines * ceil_div(pieces.line, pieces.cells);
}

cudaError_t group_terms(const GroupArgs& args, cudaStream_t stream) {
  constexpr int64_t kMost = int64_t{1} << 30;
  if (args.rows < 0 || args.outer < 0 || args.inner < 0 || args.components < 1 || args.components > kMost) return cudaErrorInvalidValue;
  if (args.value == nullptr && args.grad.data == nullptr) return cudaSuccess;
  return args.is_double ? group_terms_of<double>(args, stream) : group_terms_of<float>(args, stream);
}

}  // namespace cuda
}  // namespace vae_fast

// Softmaxes over classes that lie `inner` apart, of which an index is given, and the sum over the cells of a row.
#pragma once

#include "softmax.cuh"

namespace vae_fast {
namespace cuda {

constexpr int kColumnRun = 8;  // entries that a thread holds at once

/// `width` neighbouring cells side by side in a block, each cut into kThreads / width slices of its classes.
struct CellColumns {
  int32_t width, slices;
};

/// Classes k, k + step, ... of a cell, minus infinity where there are no more, and how many there are.
template <typename C>
VF_DEVICE int load_classes(const SoftmaxArgs& a, const char* logits, int64_t k, int64_t step, C (&v)[kColumnRun]) {
  int count = 0;
#pragma unroll
  for (int e = 0; e < kColumnRun; ++e) count += k + e * step < a.k ? 1 : 0;
  load_any<kColumnRun>(logits, a.logits.dtype, k * a.inner, step * a.inner, 0, count, v);
#pragma unroll
  for (int e = 0; e < kColumnRun; ++e) v[e] = e < count ? v[e] : -math::infinity<C>();
  return count;
}

template <typename C>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 2 : 4)
    softmax_columns_kernel(const __grid_constant__ SoftmaxArgs args, const __grid_constant__ CellColumns shape) {
  __shared__ LogSum<C> shared[kThreads];
  const int lane = static_cast<int>(threadIdx.x) % shape.width, slice = static_cast<int>(threadIdx.x) / shape.width;
  const int64_t cells = args.outer * args.inner, items = args.rows * cells, stride = static_cast<int64_t>(gridDim.x) * shape.width;
  const int64_t step = static_cast<int64_t>(shape.slices) * kColumnRun;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * shape.width; first < items; first += stride) {
    const int64_t item = first + lane;
    const bool active = item < items;
    const int64_t row = active ? item / cells : 0, c = item - row * cells, o = c / args.inner;
    const int64_t at = o * args.k * args.inner + (c - o * args.inner);  // of class 0
    const char* logits = row_start(args.logits, row) + at * size_of(args.logits.dtype);
    C v[kColumnRun];
    LogSum<C> total = LogSum<C>::zero();
    C logit = C(0), g = upstream_of<C>(args.row_grad, row);
    int64_t index = -1;
    if (active) {
      index = args.index[item];
      if (index < 0 || index >= args.k) {
        index = -1;
        logit = g = nothing_known<C>();
      } else {
        C given[1];
        load_any<1>(logits, args.logits.dtype, index * args.inner, 0, 0, 1, given);
        logit = given[0];
      }
      for (int64_t k = slice; k < args.k; k += step) {
        load_classes(args, logits, k, shape.slices, v);
        total.add_all(v);
      }
    }
    if (shape.slices > 1) {
      shared[threadIdx.x] = total;
      __syncthreads();
      total = shared[lane];
      for (int s = 1; s < shape.slices; ++s) total = Merge<C>()(total, shared[s * shape.width + lane]);
      __syncthreads();
    }
    if (!active) continue;
    const Normaliser<C> norm{total.shift(), math::log(static_cast<C>(total.sum))};
    if (slice == 0 && args.value != nullptr) static_cast<C*>(cells == 1 ? args.value : args.scratch)[item] = norm.log_share(logit);
    if (args.grad.data == nullptr) continue;
    char* grad = row_start(args.grad, row) + at * size_of(args.grad.dtype);
    for (int64_t k = slice; k < args.k; k += step) {
      const int count = load_classes(args, logits, k, shape.slices, v);
#pragma unroll
      for (int e = 0; e < kColumnRun; ++e) {
        const C p = -g * norm.share(v[e]);
        v[e] = k + e * shape.slices == index ? p + g : p;
      }
      store_any<kColumnRun>(grad, args.grad.dtype, k * args.inner, shape.slices * args.inner, 0, count, v);
    }
  }
}

/// value[row] = the sum of what scratch has of its cells, in double, in an order that the shape decides.
template <typename C>
__global__ void __launch_bounds__(kThreads)
    softmax_sum_kernel(const __grid_constant__ SoftmaxArgs args, const __grid_constant__ Groups groups) {
  __shared__ double shared[2][kWarps];
  const Place place(groups);
  int round = 0;
  const int64_t cells = args.outer * args.inner, stride = static_cast<int64_t>(gridDim.x) * groups.rows_per_block;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * groups.rows_per_block; first < args.rows; first += stride) {
    const int64_t row = first + place.group;
    const bool active = place.used && row < args.rows;
    double total = 0.0;
    if (active) {
      const C* values = static_cast<const C*>(args.scratch) + row * cells;
      for (int64_t c = place.lane; c < cells; c += groups.lanes) total += static_cast<double>(values[c]);
    }
    total = combine_group(total, groups, place, shared, round, Sum());
    if (active && place.lane == 0) static_cast<C*>(args.value)[row] = static_cast<C>(total);
  }
}

}  // namespace cuda
}  // namespace vae_fast

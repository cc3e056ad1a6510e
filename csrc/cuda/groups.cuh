// Rows on threads: a group of threads per row, from one lane to a whole block, and sums within a group and a block in a fixed order.
#pragma once

#include "launch.h"

namespace vae_fast {
namespace cuda {

/// How the threads of a block share rows. Groups of fewer than 32 lanes lie side by side in a warp; larger ones are 2, 4 or 8 whole warps.
struct Groups {
  int32_t lanes = 1;          // threads of a group
  int32_t rows_per_warp = 1;  // where a group is within a warp
  int32_t rows_per_block = 1;
  int32_t first_offset = 0;  // first shuffle distance: the least power of two that is at least lanes / 2

  static Groups of_lanes(int lanes) {
    Groups g;
    g.lanes = lanes;
    g.rows_per_warp = lanes <= kWarp ? kWarp / lanes : 1;
    g.rows_per_block = lanes <= kWarp ? kWarps * g.rows_per_warp : kThreads / lanes;
    const int in_warp = lanes < kWarp ? lanes : kWarp;
    while (2 * g.first_offset < in_warp && in_warp > 1) g.first_offset = g.first_offset == 0 ? 1 : 2 * g.first_offset;
    return g;
  }

  /// Groups for `rows` rows of `units` units of work, a lane taking up to `per_lane` of them at once.
  static Groups choose(int64_t rows, int64_t units, int per_lane) {
    if (units <= static_cast<int64_t>(kWarp) * per_lane) {
      // One pass: the least instructions per row, counting a unit and the sum over the group as one each.
      int best = 1;
      double best_cost = 1e30;
      for (int lanes = 1; lanes <= kWarp; ++lanes) {
        const int64_t steps = ceil_div(units > 0 ? units : 1, lanes);
        if (steps > per_lane) continue;
        const double cost = static_cast<double>(steps + 1) / (kWarp / lanes);
        if (cost < best_cost) best = lanes, best_cost = cost;
      }
      return of_lanes(best);
    }
    if (tuning().lanes > 0) return of_lanes(tuning().lanes);
    // Where rows are enough to fill the device a quarter or half of a warp may waste less: the last of its passes is nearly full, and what
    // is to be done once a row (a third of a pass) is done for several at once. Eight lanes still read whole lines of memory.
    const int64_t enough = static_cast<int64_t>(processors()) * 32 * kWarp;
    int lanes = kWarp;
    double least = 1e30;
    for (int narrow = kWarp / 4; narrow <= kWarp && units < 4 * static_cast<int64_t>(kThreads); narrow *= 2) {
      const double cost = narrow * (static_cast<double>(ceil_div(units, static_cast<int64_t>(narrow) * per_lane)) + 1.0 / 3);
      if ((narrow == kWarp || rows * narrow >= 2 * enough) && cost < least) lanes = narrow, least = cost;
    }
    // More than a warp where rows are long or too few.
    while (lanes >= kWarp && lanes < kThreads && lanes < units && (rows * lanes < enough || units >= 4 * static_cast<int64_t>(kThreads)))
      lanes *= 2;
    return of_lanes(lanes);
  }
};

/// This thread's place.
struct Place {
  int lane;   // within the group
  int group;  // within the block
  bool used;  // false for the lanes of a warp that are left over

  VF_DEVICE explicit Place(const Groups& g) {
    const int thread = static_cast<int>(threadIdx.x);
    if (g.lanes > kWarp) {
      group = thread / g.lanes;
      lane = thread % g.lanes;
      used = true;
    } else {
      const int in_warp = thread % kWarp, sub = in_warp / g.lanes;
      lane = in_warp % g.lanes;
      group = thread / kWarp * g.rows_per_warp + sub;
      used = sub < g.rows_per_warp;
    }
  }
};

VF_DEVICE double shift_down(double v, int offset) { return __shfl_down_sync(kFullMask, v, static_cast<unsigned>(offset)); }

VF_DEVICE float shift_down(float v, int offset) { return __shfl_down_sync(kFullMask, v, static_cast<unsigned>(offset)); }

/// Sums over the lanes that differ in the bits from `from` to below `to`; all of them receive it.
template <typename T>
VF_DEVICE T sum_lanes(T v, int from, int to) {
  for (int bit = from; bit < to; bit *= 2) v += __shfl_xor_sync(kFullMask, v, static_cast<unsigned>(bit));
  return v;
}

struct Sum {
  VF_DEVICE double operator()(double a, double b) const { return a + b; }
};

/// Combines the values of a group, in a fixed order; the result is right in the group's lane 0. Every thread of the block must call it,
/// equally often. `shared` holds two rounds of kWarps values: rounds alternate, so one barrier each is enough.
template <typename T, typename Combine>
VF_DEVICE T combine_group(T v, const Groups& g, const Place& place, T (*shared)[kWarps], int& round, Combine combine) {
  const int in_warp = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = g.lanes > kWarp ? in_warp : place.lane;
  const int lanes = g.lanes > kWarp ? kWarp : g.lanes;
  for (int offset = g.first_offset; offset > 0; offset >>= 1) {
    const T other = shift_down(v, offset);
    if (lane + offset < lanes) v = combine(v, other);
  }
  if (g.lanes > kWarp) {
    round ^= 1;
    if (in_warp == 0) shared[round][warp] = v;
    __syncthreads();
    if (place.lane == 0) {
      for (int w = 1; w < g.lanes / kWarp; ++w) v = combine(v, shared[round][warp + w]);
    }
  }
  return v;
}

/// Gives every lane of a group what its lane 0 has. Every thread of the block must call it; between two calls with the same `shared` lies
/// another barrier of the block, as combine_group has where a group is more than a warp.
template <typename T>
VF_DEVICE T from_first(T v, const Groups& g, const Place& place, T* shared) {
  if (g.lanes > kWarp) {
    if (place.lane == 0) shared[place.group] = v;
    __syncthreads();
    return shared[place.group];
  }
  uint32_t words[sizeof(T) / 4];
  static_assert(sizeof(words) == sizeof(T), "whole words");
  memcpy(words, &v, sizeof(v));
#pragma unroll
  for (size_t i = 0; i < sizeof(T) / 4; ++i)
    words[i] = __shfl_sync(kFullMask, words[i], static_cast<int>(threadIdx.x) % kWarp - place.lane);
  memcpy(&v, words, sizeof(v));
  return v;
}

/// Sum over the block, in thread 0.
VF_DEVICE double sum_block(double v, double* shared) {
  const int in_warp = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int offset = kWarp / 2; offset > 0; offset >>= 1) v += shift_down(v, offset);
  if (in_warp == 0) shared[warp] = v;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kWarps; ++w) v += shared[w];
  }
  return v;
}

/// The first `sums` of v summed over the grid, in thread 0 of whichever block comes last (`last` there): each block leaves its sums in
/// `partials` and counts itself; the last adds them in the order of the blocks, so the result does not depend on which one it is.
template <int kMost>
VF_DEVICE void sum_grid(double (&v)[kMost], int sums, double* partials, uint32_t* counter, double* shared, bool* last) {
#pragma unroll
  for (int s = 0; s < kMost; ++s) {
    if (s >= sums) continue;
    const double block_sum = sum_block(v[s], shared);
    if (threadIdx.x == 0) partials[s * gridDim.x + blockIdx.x] = block_sum;
    __syncthreads();  // `shared` is free again
  }
  if (threadIdx.x == 0) {
    __threadfence();
    *last = atomicAdd(counter, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!*last) return;
  __threadfence();
  const volatile double* all = partials;  // other blocks wrote them
#pragma unroll
  for (int s = 0; s < kMost; ++s) {
    if (s >= sums) continue;
    double total = 0.0;
    for (unsigned b = threadIdx.x; b < gridDim.x; b += kThreads) total += all[s * gridDim.x + b];
    v[s] = sum_block(total, shared);
    __syncthreads();
  }
  if (threadIdx.x == 0) *counter = 0;
}

}  // namespace cuda
}  // namespace vae_fast

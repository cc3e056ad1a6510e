// log sum_k e^(a_k) over dense rows of one data type, and its gradient, 16 bytes at a time: no weights, no data types to look up.
#pragma once

#include "logsumexp.cuh"

namespace vae_fast {
namespace cuda {

/// Vectors that a lane holds at once: sixteen elements would not fit the registers.
template <typename A>
constexpr int kVectorsOfRow = sizeof(A) == 2 ? 1 : 2;

/// Whether the rows of a call can be moved so.
template <typename A>
bool fits_row_vectors(const LogSumExpArgs& args) {
  return args.inner == 1 && args.w == nullptr && args.dtype == kDType<A> && args.k % (16 / static_cast<int>(sizeof(A))) == 0 &&
         reinterpret_cast<uintptr_t>(args.a) % 16 == 0 && args.k < (int64_t{1} << 30);
}

/// Calls f(step, v) with the elements of every vector of a row that this lane takes, `kSteps` of them loaded at once. f gets the vector's
/// place, too.
template <typename A, typename F>
VF_DEVICE void for_row_vectors(const void* row, int units, int lane, int lanes, F&& f) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(A)), kSteps = kVectorsOfRow<A>;
  for (int u = lane; u < units; u += lanes * kSteps) {
    Packed<A, kVector> raw[kSteps];
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int at = u + s * lanes < units ? u + s * lanes : units - 1;  // no branch, or the second load would wait for the first
      load(static_cast<const A*>(row) + static_cast<int64_t>(at) * kVector, raw[s]);
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (s > 0 && u + s * lanes >= units) continue;
      float v[kVector];
#pragma unroll
      for (int e = 0; e < kVector; ++e) v[e] = unpack<float>(raw[s], e);
      f(u + s * lanes, v);
    }
  }
}

template <typename A>
__global__ void __launch_bounds__(kThreads, 4)
    logsumexp_vectors_kernel(const __grid_constant__ LogSumExpArgs args, const __grid_constant__ Groups groups) {
  __shared__ LogSum<float> shared[2][kWarps];
  const Place place(groups);
  int round = 0;
  const int units = static_cast<int>(args.k) / (16 / static_cast<int>(sizeof(A)));
  const int64_t stride = static_cast<int64_t>(gridDim.x) * groups.rows_per_block;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * groups.rows_per_block; first < args.outer; first += stride) {
    const int64_t o = first + place.group;
    const bool active = place.used && o < args.outer;
    LogSum<float> total = LogSum<float>::zero();
    if (active) {
      for_row_vectors<A>(static_cast<const A*>(args.a) + o * args.k, units, place.lane, groups.lanes,
                         [&](int, const float (&v)[16 / sizeof(A)]) { total.add_all(v); });
    }
    total = combine_group(total, groups, place, shared, round, Merge<float>());
    if (active && place.lane == 0) static_cast<float*>(args.out)[o] = total.result();
  }
}

template <typename A>
__global__ void __launch_bounds__(kThreads, 4)
    logsumexp_vectors_backward_kernel(const __grid_constant__ LogSumExpBackwardArgs args, const __grid_constant__ Groups groups) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(A));
  const Place place(groups);
  if (!place.used) return;
  const LogSumExpArgs& f = args.forward;
  const int units = static_cast<int>(f.k) / kVector;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * groups.rows_per_block;
  for (int64_t o = static_cast<int64_t>(blockIdx.x) * groups.rows_per_block + place.group; o < f.outer; o += stride) {
    const float out = static_cast<const float*>(f.out)[o], g = static_cast<const float*>(args.grad_out)[o * args.grad_out_stride[0]];
    A* const to = static_cast<A*>(args.grad_a) + o * f.k;
    for_row_vectors<A>(static_cast<const A*>(f.a) + o * f.k, units, place.lane, groups.lanes, [&](int at, float (&v)[kVector]) {
#pragma unroll
      for (int e = 0; e < kVector; ++e) v[e] = math::LogSumExpGradient<float>(g, v[e], out, 1.0f).of_a;
      store(to + static_cast<int64_t>(at) * kVector, v);
    });
  }
}

}  // namespace cuda
}  // namespace vae_fast

// log sum_k w_k e^(a_k) over the middle dimension of a dense (outer, k, inner) array, and its gradients, in one pass: every thread keeps
// the largest entry it has seen and the sum relative to it; threads are combined in a fixed order.
#pragma once

#include "../math/logsumexp.h"
#include "groups.cuh"
#include "memory.cuh"

namespace vae_fast {
namespace cuda {

/// sum e^top is what has been added up; top is -inf at first. An aggregate, so that shared memory can hold it.
template <typename C>
struct LogSum {
  C top;
  double sum;

  VF_DEVICE static LogSum zero() { return {-math::infinity<C>(), 0.0}; }

  /// e^(v - top) for v <= top. Infinities: e^(inf - inf) is one entry of the largest, e^(-inf) nothing whatever the largest is; NaN stays
  /// NaN.
  VF_DEVICE static C weight(C v, C top) {
    const C e = v == top ? C(1) : math::exp(v - top);
    return v == -math::infinity<C>() ? C(0) : e;
  }

  /// Adds w[e] e^v[e] for e < count; entries of weight zero are left out whatever they are.
  template <int N>
  VF_DEVICE void add(const C (&v)[N], const C (&w)[N], int count) {
    C above = top;
#pragma unroll
    for (int e = 0; e < N; ++e) above = e < count && w[e] != C(0) && v[e] > above ? v[e] : above;
    if (above > top) {
      sum *= static_cast<double>(weight(top, above));
      top = above;
    }
    C run = C(0);
#pragma unroll
    for (int e = 0; e < N; ++e) run += e < count && w[e] != C(0) ? w[e] * weight(v[e], top) : C(0);
    sum += static_cast<double>(run);
  }

  /// What is subtracted of entries of weight one: the top, but 0 for minus infinity and the largest number for infinity, so that no
  /// difference is NaN but of a NaN: e^-inf is then nothing, and e^inf infinite, as the sum is.
  VF_DEVICE static C shift_of(C top) {
    const C most = math::largest<C>();
    return top > most ? most : (top < -most ? C(0) : top);
  }
  VF_DEVICE C shift() const { return shift_of(top); }

  /// Adds e^v[e].
  template <int N>
  VF_DEVICE void add_all(const C (&v)[N]) {
    C above = top;
#pragma unroll
    for (int e = 0; e < N; ++e) above = v[e] > above ? v[e] : above;
    rise_to(above);
    add_below(v, shift_of(above));  // of the top as it is now
  }

  VF_DEVICE void rise_to(C above) {
    if (above > top) {
      sum *= static_cast<double>(weight(top, above));
      top = above;
    }
  }

  /// Adds e^v[e], of entries none of which is above the top, whose shift is `from`.
  template <int N>
  VF_DEVICE void add_below(const C (&v)[N], C from) {
    C run = C(0);
#pragma unroll
    for (int e = 0; e < N; ++e) run += math::exp_of_sum(v[e] - from);
    sum += static_cast<double>(run);
  }

  /// The sum relative to a top that is at least as large.
  VF_DEVICE double sum_from(C above) const { return top == above ? sum : sum * static_cast<double>(weight(top, above)); }

  VF_DEVICE C result() const { return math::log(static_cast<C>(sum)) + top; }
};

template <typename C>
struct Merge {
  VF_DEVICE LogSum<C> operator()(const LogSum<C>& a, const LogSum<C>& b) const {
    const C top = b.top > a.top ? b.top : a.top;
    const double of_a = a.top == top ? 1.0 : static_cast<double>(LogSum<C>::weight(a.top, top));
    const double of_b = b.top == top ? 1.0 : static_cast<double>(LogSum<C>::weight(b.top, top));
    return {top, a.sum * of_a + b.sum * of_b};
  }
};

template <typename C>
VF_DEVICE LogSum<C> shift_down(const LogSum<C>& v, int offset) {
  const unsigned by = static_cast<unsigned>(offset);
  return {__shfl_down_sync(kFullMask, v.top, by), __shfl_down_sync(kFullMask, v.sum, by)};
}

constexpr int kRun = 4;  // entries that a thread holds at once

/// Entries k, k + step, ... of one sum, up to kRun of them, and how many there are.
template <typename C>
VF_DEVICE int load_entries(const LogSumExpArgs& args, int64_t o, int64_t i, int64_t k, int64_t step, C (&v)[kRun], C (&w)[kRun]) {
  int count = 1;
#pragma unroll
  for (int e = 1; e < kRun; ++e) count += k + e * step < args.k ? 1 : 0;
  load_any<kRun>(args.a, args.dtype, (o * args.k + k) * args.inner + i, step * args.inner, 0, count, v);
  if (args.w == nullptr) {
#pragma unroll
    for (int e = 0; e < kRun; ++e) w[e] = C(1);
  } else {
    const C* p = static_cast<const C*>(args.w) + o * args.w_stride[0] + i * args.w_stride[2];
#pragma unroll
    for (int e = 0; e < kRun; ++e) w[e] = e < count ? p[(k + e * step) * args.w_stride[1]] : C(0);
  }
  return count;
}

template <typename C>
VF_DEVICE void fold_weights(C (&v)[kRun], C (&w)[kRun]) {
#pragma unroll
  for (int e = 0; e < kRun; ++e) math::fold_extreme_weight(v[e], w[e]);
}

/// inner is 1: a group of threads per sum.
template <typename C>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 3 : 4)
    logsumexp_rows_kernel(const __grid_constant__ LogSumExpArgs args, const __grid_constant__ Groups groups) {
  __shared__ LogSum<C> shared[2][kWarps];
  const Place place(groups);
  int round = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * groups.rows_per_block;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * groups.rows_per_block; first < args.outer; first += stride) {
    const int64_t o = first + place.group;
    const bool active = place.used && o < args.outer;
    LogSum<C> total = LogSum<C>::zero();
    if (active) {
      for (int64_t k = place.lane; k < args.k; k += static_cast<int64_t>(groups.lanes) * kRun) {
        C v[kRun], w[kRun];
        const int count = load_entries(args, o, 0, k, groups.lanes, v, w);
        if (args.w != nullptr) fold_weights(v, w);
        total.add(v, w, count);
      }
    }
    total = combine_group(total, groups, place, shared, round, Merge<C>());
    if (active && place.lane == 0) static_cast<C*>(args.out)[o] = total.result();
  }
}

/// How blocks share sums where inner is larger: `width` neighbouring sums side by side, each cut into kThreads / width slices of k.
struct Columns {
  int32_t width, slices;
};

template <typename C>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 3 : 4)
    logsumexp_columns_kernel(const __grid_constant__ LogSumExpArgs args, const __grid_constant__ Columns shape) {
  __shared__ LogSum<C> shared[kThreads];
  const int lane = static_cast<int>(threadIdx.x) % shape.width, slice = static_cast<int>(threadIdx.x) / shape.width;
  const int64_t columns = args.outer * args.inner, stride = static_cast<int64_t>(gridDim.x) * shape.width;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * shape.width; first < columns; first += stride) {
    const int64_t column = first + lane;
    LogSum<C> total = LogSum<C>::zero();
    if (column < columns) {
      const int64_t o = column / args.inner, i = column - o * args.inner;
      for (int64_t k = slice; k < args.k; k += static_cast<int64_t>(shape.slices) * kRun) {
        C v[kRun], w[kRun];
        const int count = load_entries(args, o, i, k, shape.slices, v, w);
        if (args.w != nullptr) fold_weights(v, w);
        total.add(v, w, count);
      }
    }
    if (shape.slices > 1) {
      shared[threadIdx.x] = total;
      __syncthreads();
      if (slice == 0) {
        for (int s = 1; s < shape.slices; ++s) total = Merge<C>()(total, shared[s * shape.width + lane]);
      }
      __syncthreads();
    }
    if (slice == 0 && column < columns) static_cast<C*>(args.out)[column] = total.result();
  }
}

/// Gradients of kRun entries of sum (o, i).
template <typename C>
VF_DEVICE void differentiate(const LogSumExpBackwardArgs& args, int64_t o, int64_t i, int64_t k, int64_t step, C out, C g) {
  const LogSumExpArgs& f = args.forward;
  C v[kRun], w[kRun], grad_w[kRun];
  const int count = load_entries(f, o, i, k, step, v, w);
#pragma unroll
  for (int e = 0; e < kRun; ++e) {
    const math::LogSumExpGradient<C> d(g, v[e], out, w[e]);
    grad_w[e] = d.of_w;
    v[e] = d.of_a;
  }
  const int64_t at = (o * f.k + k) * f.inner + i, stride = step * f.inner;
  if (args.grad_a != nullptr) store_any<kRun>(args.grad_a, f.dtype, at, stride, 0, count, v);
  if (args.grad_w != nullptr) {
    C* p = static_cast<C*>(args.grad_w) + at;
#pragma unroll
    for (int e = 0; e < kRun; ++e) {
      if (e < count) p[e * stride] = grad_w[e];
    }
  }
}

template <typename C>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 3 : 4)
    logsumexp_rows_backward_kernel(const __grid_constant__ LogSumExpBackwardArgs args, const __grid_constant__ Groups groups) {
  const Place place(groups);
  if (!place.used) return;
  const LogSumExpArgs& f = args.forward;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * groups.rows_per_block;
  for (int64_t o = static_cast<int64_t>(blockIdx.x) * groups.rows_per_block + place.group; o < f.outer; o += stride) {
    const C out = static_cast<const C*>(f.out)[o], g = static_cast<const C*>(args.grad_out)[o * args.grad_out_stride[0]];
    for (int64_t k = place.lane; k < f.k; k += static_cast<int64_t>(groups.lanes) * kRun)
      differentiate(args, o, 0, k, groups.lanes, out, g);
  }
}

template <typename C>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 3 : 4)
    logsumexp_columns_backward_kernel(const __grid_constant__ LogSumExpBackwardArgs args, const __grid_constant__ Columns shape) {
  const LogSumExpArgs& f = args.forward;
  const int lane = static_cast<int>(threadIdx.x) % shape.width, slice = static_cast<int>(threadIdx.x) / shape.width;
  const int64_t columns = f.outer * f.inner, stride = static_cast<int64_t>(gridDim.x) * shape.width;
  for (int64_t column = static_cast<int64_t>(blockIdx.x) * shape.width + lane; column < columns; column += stride) {
    const int64_t o = column / f.inner, i = column - o * f.inner;
    const C out = static_cast<const C*>(f.out)[column];
    const C g = static_cast<const C*>(args.grad_out)[o * args.grad_out_stride[0] + i * args.grad_out_stride[1]];
    for (int64_t k = slice; k < f.k; k += static_cast<int64_t>(shape.slices) * kRun) differentiate(args, o, i, k, shape.slices, out, g);
  }
}

}  // namespace cuda
}  // namespace vae_fast

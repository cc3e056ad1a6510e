// What a lane holds of a softmax's cell: vectors of 16 bytes, or single elements of whatever type.
#pragma once

#include <type_traits>

#include "logsumexp.cuh"

namespace vae_fast {
namespace cuda {

/// Where a cell's numbers lie; counts are of one cell each row.
struct Cell {
  int64_t row, first;  // its row, and the place of its first class there
  const char *logits, *x;

  VF_DEVICE Cell(const SoftmaxArgs& a, int64_t item, int64_t cells) : row(item), first(0) {
    if (cells != 1) {
      row = quotient(item, cells);
      first = (item - row * cells) * a.k;
    }
    logits = row_start(a.logits, row) + first * size_of(a.logits.dtype);
    x = a.target == Target::kDense ? row_start(a.x, row) : nullptr;
  }
  VF_DEVICE char* grad(const SoftmaxArgs& a) const { return row_start(a.grad, row) + first * size_of(a.grad.dtype); }
};

/// 16 bytes of minus infinity, or of zero.
template <typename A>
VF_DEVICE void fill_lowest(Packed<A, 16 / static_cast<int>(sizeof(A))>& to) {
  constexpr uint32_t kLowest = std::is_same<A, float>::value ? 0xff800000u : std::is_same<A, Half>::value ? 0xfc00fc00u : 0xff80ff80u;
#pragma unroll
  for (uint32_t& word : to.w) word = kLowest;
}

/// Elements at .. at + N - 1 of `to`, which holds A or float, from compute values.
template <typename A, int N>
VF_DEVICE void store_vector(char* to, DType dtype, int64_t at, const float (&v)[N]) {
  if (sizeof(A) == 4 || dtype == DType::kFloat) {
    store(reinterpret_cast<float*>(to) + at, v);
  } else {
    store(reinterpret_cast<A*>(to) + at, v);
  }
}

/// Logits of type A, counts of type X (void: none), by vectors of 16 bytes of logits: what a lane holds of a piece.
template <typename A, typename X>
struct Vectors {
  using C = float;
  static constexpr bool kCounts = !std::is_void<X>::value;
  using Count = std::conditional_t<kCounts, X, float>;
  static constexpr int kWidth = 16 / static_cast<int>(sizeof(A));
  static constexpr int kHeld = kCounts && sizeof(A) == 2 ? 4 : 8;
  static constexpr int kBlocks = 2;  // resident

  Packed<A, kWidth> logits[kHeld];
  Packed<Count, kWidth> counts[kCounts ? kHeld : 1];

  VF_DEVICE static int64_t units(const SoftmaxArgs& a) { return a.k / kWidth; }
  VF_DEVICE static bool owns(int64_t k, int lane, int lanes) {
    return static_cast<uint32_t>(k / kWidth) % static_cast<uint32_t>(lanes) == static_cast<uint32_t>(lane);
  }

  /// Units from + lane, from + lane + lanes, ... of a cell.
  VF_DEVICE void load(const SoftmaxArgs& a, const Cell& cell, int64_t from, int lane, int lanes) {
    const int begin = static_cast<int>(from) + lane, end = static_cast<int>(units(a));
#pragma unroll
    for (int s = 0; s < kHeld; ++s) {
      const int at = begin + s * lanes;
      fill_lowest(logits[s]);
      if (at < end) cuda::load(reinterpret_cast<const A*>(cell.logits) + static_cast<int64_t>(at) * kWidth, logits[s]);
    }
    if constexpr (kCounts) {
#pragma unroll
      for (int s = 0; s < kHeld; ++s) {
        const int at = begin + s * lanes;
#pragma unroll
        for (uint32_t& word : counts[s].w) word = 0;
        if (at < end) cuda::load(reinterpret_cast<const Count*>(cell.x) + static_cast<int64_t>(at) * kWidth, counts[s]);
      }
    }
  }

  /// f(v, x) for what is held, minus infinity and zero where a cell has no more.
  template <typename F>
  VF_DEVICE void for_held(const SoftmaxArgs& a, int64_t from, int lanes, F&& f) const {
    const int begin = static_cast<int>(from), end = static_cast<int>(units(a));
#pragma unroll
    for (int s = 0; s < kHeld; ++s) {
      if (s > 0 && begin + s * lanes >= end) continue;
      float v[kWidth], x[kWidth];
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        v[e] = unpack<float>(logits[s], e);
        if constexpr (kCounts) x[e] = unpack<float>(counts[s], e);
      }
      f(s, v, x);
    }
  }

  VF_DEVICE static void store(const SoftmaxArgs& a, const Stream& stream, char* to, int64_t from, int lane, int lanes, int s,
                              const float (&v)[kWidth]) {
    const int at = static_cast<int>(from) + lane + s * lanes;
    if (at >= static_cast<int>(units(a))) return;
    if (kCounts && &stream == &a.grad_x) {
      store_vector<Count>(to, stream.dtype, static_cast<int64_t>(at) * kWidth, v);
    } else {
      store_vector<A>(to, stream.dtype, static_cast<int64_t>(at) * kWidth, v);
    }
  }
};

/// Whatever the streams hold, element by element: a lane's entries are a group's lanes apart.
template <typename C_, bool kOfCounts>
struct Scalars {
  using C = C_;
  static constexpr bool kCounts = kOfCounts;
  static constexpr int kWidth = kRun, kHeld = 1;
  static constexpr int kBlocks = sizeof(C) == 8 ? 2 : 3;

  C logits[kWidth], counts[kWidth];

  VF_DEVICE static int64_t units(const SoftmaxArgs& a) { return ceil_units(a.k); }
  VF_DEVICE static bool owns(int64_t k, int lane, int lanes) {
    return static_cast<uint32_t>(k) % static_cast<uint32_t>(lanes) == static_cast<uint32_t>(lane);
  }

  VF_DEVICE void load(const SoftmaxArgs& a, const Cell& cell, int64_t from, int lane, int lanes) {
    const int64_t at = from * kWidth + lane;
    const int count = present(a, at, lanes);
    load_any<kWidth>(cell.logits, a.logits.dtype, at, lanes, 0, count, logits);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) logits[e] = e < count ? logits[e] : -math::infinity<C>();
    if constexpr (kCounts) {
      const int64_t step = a.x.inner_stride;
      load_any<kWidth>(cell.x, a.x.dtype, at * step, lanes * step, 0, count, counts);
    }
  }

  template <typename F>
  VF_DEVICE void for_held(const SoftmaxArgs&, int64_t, int, F&& f) const {
    f(0, logits, counts);
  }

  VF_DEVICE static void store(const SoftmaxArgs& a, const Stream& stream, char* to, int64_t from, int lane, int lanes, int,
                              const C (&v)[kWidth]) {
    const int64_t at = from * kWidth + lane;
    store_any<kWidth>(to, stream.dtype, at, lanes, 0, present(a, at, lanes), v);
  }

 private:
  VF_DEVICE static int64_t ceil_units(int64_t k) { return (k + kWidth - 1) / kWidth; }
  VF_DEVICE static int present(const SoftmaxArgs& a, int64_t at, int lanes) {
    int count = 0;
#pragma unroll
    for (int e = 0; e < kWidth; ++e) count += at + e * lanes < a.k ? 1 : 0;
    return count;
  }
};

}  // namespace cuda
}  // namespace vae_fast

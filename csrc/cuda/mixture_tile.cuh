// What the mixture kernels share: tiles of rows x components and rows x dimensions in registers, fed through shared memory.
//
// A block is 16 x 16 threads; thread (ty, tx) holds kRowsPerThread rows times a few components or dimensions. Operands lie transposed in
// shared memory, [step][row] and [step][column], so that a thread reads its own in accesses of 16 bytes. Two buffers take turns: the next
// one's elements are on their way from memory while the present one is computed, and one barrier per buffer is enough.
#pragma once

#include "../math/mixture.h"
#include "memory.cuh"

namespace vae_fast {
namespace cuda {

constexpr int kSide = 16;  // of the square of threads
static_assert(kSide * kSide == kThreads, "a block is a square");

template <typename C>
struct MixtureTile {
  static constexpr int kRowsPerThread = sizeof(C) == 8 ? 4 : 8;
  static constexpr int kRows = kSide * kRowsPerThread;  // 128, or 64 in double
  static constexpr int kSteps = sizeof(C) == 8 ? 8 : 16;
  static constexpr int kPad = 16 / static_cast<int>(sizeof(C));  // keeps the alignment of 16 bytes, and rows of shared memory off one bank
  static constexpr int kRowStride = kRows + kPad;
  static constexpr int kPerThread = kRows * kSteps / kThreads;  // elements of rows that a thread fetches
  static constexpr int kLanes = kSteps / kPerThread;            // threads that fetch one row
};

/// v, but the compiler cannot know: what depends on it is worked out where it is used, not ahead of a loop in registers that are scarce.
VF_DEVICE int opaque(int v) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(v));
#endif
  return v;
}

/// N neighbouring values of shared memory.
template <int N, typename C>
VF_DEVICE void take(const C* p, C (&v)[N]) {
  Packed<C, N> packed;
  load(p, packed);
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = unpack<C>(packed, i);
}

/// Elements d .. d + N of the row of `x` that begins at `row`, as far as they exist, else 0.
template <int N, typename C>
VF_DEVICE void load_run(const Stream& x, const char* row, int d, int dims, C (&v)[N]) {
  const int count = row == nullptr || d >= dims ? 0 : (dims - d < N ? dims - d : N);
  if (x.inner_stride == 1) {
    load_any<N>(row, x.dtype, d, 1, 0, count, v);
  } else {
    C one[1];
    load_any<1>(row, x.dtype, 0, 1, 0, count > 0 ? 1 : 0, one);
#pragma unroll
    for (int e = 0; e < N; ++e) v[e] = e < count ? one[0] : C(0);
  }
}

/// Where row `row` of x begins; null beyond the last.
VF_DEVICE const char* row_or_null(const MixtureArgs& args, int64_t row) { return row < args.rows ? row_start(args.x, row) : nullptr; }

/// Element d of a row of x as it is read.
template <typename C>
VF_DEVICE C read_x(const MixtureArgs& args, C x, int d) {
  const C near = math::bounded(x);
  if (args.x_scale == nullptr || d >= args.dims) return near;
  return math::bounded(near * static_cast<const C*>(args.x_scale)[d]);
}

/// Products of two operands in shared memory, rows x 64 columns, over `kSteps` steps at a time.
template <typename C>
struct ProductStage {
  using Tile = MixtureTile<C>;
  static constexpr int kColumns = 4 * kSide, kColumnStride = kColumns + Tile::kPad;
  alignas(16) C a[Tile::kSteps][Tile::kRowStride];
  alignas(16) C b[Tile::kSteps][kColumnStride];
};

/// sum[i][j] += sum over steps from `begin` to `end` of a(row i, step) b(step, column j). fetch_a(step, v) gives a thread kPerThread steps
/// of the row it fetches (row thread / kLanes), fetch_b(step, column) one element. Every thread of the block must come here.
template <typename C, typename FetchA, typename FetchB>
VF_DEVICE void multiply(ProductStage<C> (&stage)[2], int& buffer, int begin, int end, FetchA&& fetch_a, FetchB&& fetch_b,
                        C (&sum)[MixtureTile<C>::kRowsPerThread][4]) {
  using Tile = MixtureTile<C>;
  constexpr int kOfB = Tile::kSteps * ProductStage<C>::kColumns / kThreads, kColumns = ProductStage<C>::kColumns;
  const int thread = static_cast<int>(threadIdx.x), tx = thread % kSide, ty = thread / kSide;
  const int row = thread / Tile::kLanes, step = thread % Tile::kLanes * Tile::kPerThread, column = thread % kColumns;
  C a[Tile::kPerThread], b[kOfB];
  const auto fetch = [&](int at) {
    fetch_a(at + step, a);
#pragma unroll
    for (int i = 0; i < kOfB; ++i) b[i] = fetch_b(at + thread / kColumns + i * (kThreads / kColumns), column);
  };
  fetch(begin);
  for (int at = begin; at < end; at += Tile::kSteps) {
    ProductStage<C>& s = stage[buffer];
    buffer ^= 1;
#pragma unroll
    for (int i = 0; i < Tile::kPerThread; ++i) s.a[step + i][row] = a[i];
#pragma unroll
    for (int i = 0; i < kOfB; ++i) s.b[thread / kColumns + i * (kThreads / kColumns)][column] = b[i];
    __syncthreads();
    if (at + Tile::kSteps < end) fetch(at + Tile::kSteps);
#pragma unroll 2
    for (int p = 0; p < Tile::kSteps; ++p) {
      C left[Tile::kRowsPerThread], right[4];
      take(&s.a[p][ty * Tile::kRowsPerThread], left);
      take(&s.b[p][tx * 4], right);
#pragma unroll
      for (int i = 0; i < Tile::kRowsPerThread; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] = math::fma(left[i], right[j], sum[i][j]);
      }
    }
  }
}

}  // namespace cuda
}  // namespace vae_fast

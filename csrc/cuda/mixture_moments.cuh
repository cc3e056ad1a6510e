// Moments of the components, sums over rows that responsibilities weigh: each block has some of them in registers and goes through one
// piece of the rows.
#pragma once

#include "mixture_plan.h"
#include "mixture_tile.cuh"

namespace vae_fast {
namespace cuda {

/// The rows of this block's piece.
struct Piece {
  int64_t begin, end;
  VF_DEVICE Piece(const SumsShape& shape, int64_t rows, int64_t piece) {
    const int64_t tiles = (rows + shape.tile_rows - 1) / shape.tile_rows,
                  each = (tiles + shape.pieces - 1) / shape.pieces * shape.tile_rows;
    begin = piece * each < rows ? piece * each : rows;
    end = begin + each < rows ? begin + each : rows;
  }
};

/// Sums v over the threads that are multiples of `together` apart, a power of two; the first `together` threads have the results. Every
/// thread of the block must come here, and not touch `shared` before the next barrier.
template <int N>
VF_DEVICE void sum_groups(double (&v)[N], int together, double (*shared)[kThreads]) {
  const int thread = static_cast<int>(threadIdx.x);
  if (together == kThreads) return;
  __syncthreads();
#pragma unroll
  for (int j = 0; j < N; ++j) shared[j][thread] = v[j];
  for (int half = kThreads / 2; half >= together; half /= 2) {
    __syncthreads();
    if (thread < half) {
#pragma unroll
      for (int j = 0; j < N; ++j) shared[j][thread] += shared[j][thread + half];
    }
  }
#pragma unroll
  for (int j = 0; j < N; ++j) v[j] = shared[j][thread];
}

/// Beyond these the moments about the means are summed in units of the standard deviation, one operation more.
template <typename C>
VF_DEVICE constexpr C moderate() {
  return sizeof(C) == 8 ? static_cast<C>(1e100) : static_cast<C>(1e15);
}

/// Whether a call's responsibilities and rows lie so that kLeft of a row's, and kRight dimensions, are within the tensor or beyond it
/// together and move 16 bytes at a time.
template <typename C, int kLeft, int kRight>
VF_DEVICE bool dense_quads(const MixtureArgs& m, const void* weights) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return m.x.dtype == kDType<C> && m.x.inner_stride == 1 && m.x.row.dims == 1 && m.x.row.stride[0] % kRight == 0 &&
         m.components % kLeft == 0 && m.dims % kRight == 0 && aligned(m.x.data) && aligned(weights);
}

/// counts, first and (kSecond) second of MixtureBackwardArgs for the diagonal; for full factors first and counts, in units of x.
///
/// Sums of q t and q t^2 with t = x - mean, scaled at the end, are one operation less than those of q u and q u^2. Where t or the scale may
/// be so large that they overflow, a block changes to the latter for the rest of its rows.
template <typename C, bool kSecond>
__global__ void __launch_bounds__(kThreads, 2)
    mixture_moments_kernel(const __grid_constant__ MixtureArgs m, const __grid_constant__ SumsShape shape,
                           const __grid_constant__ PieceSums to) {
  constexpr int kLeft = SumsTile<C>::kLeft, kRight = SumsTile<C>::kRight;
  alignas(16) __shared__ C stage[2][SumsTile<C>::kStage];
  __shared__ double counts[kLeft][kThreads];
  __shared__ int32_t far_tile[2], far_parameters;
  const int thread = static_cast<int>(threadIdx.x), right = thread % shape.right, rest = thread / shape.right;
  const int left = rest % shape.left, group = rest / shape.left, together = shape.left * shape.right;
  const int tiles = shape.left_tiles * shape.right_tiles, tile = static_cast<int>(blockIdx.x) % tiles;
  const int64_t piece = blockIdx.x / tiles;
  const int right_tile = tile % shape.right_tiles, k_first = tile / shape.right_tiles * shape.left * kLeft;
  const int d_first = right_tile * shape.right * kRight, k = k_first + left * kLeft, d = d_first + right * kRight;
  const int components = static_cast<int>(m.components), dims = static_cast<int>(m.dims);
  const int q_width = shape.left * kLeft, x_width = shape.right * kRight;
  const Piece rows(shape, to.rows, piece);

  const auto inside = [&](int i, int j) { return k + i < components && d + j < dims; };
  const auto scale = [&](int i, int j) {
    if (m.full) return C(1);
    return inside(i, j) ? static_cast<const C*>(m.scale)[static_cast<int64_t>(opaque(k) + i) * dims + d + j] : C(0);
  };
  if (thread == 0) far_tile[0] = far_tile[1] = -1, far_parameters = 0;
  __syncthreads();
  C mean[kLeft][kRight], first[kLeft][kRight], second[kLeft][kRight];
#pragma unroll
  for (int i = 0; i < kLeft; ++i) {
    counts[i][thread] = 0.0;
#pragma unroll
    for (int j = 0; j < kRight; ++j) {
      mean[i][j] = inside(i, j) ? math::bounded(static_cast<const C*>(m.means)[static_cast<int64_t>(k + i) * dims + d + j]) : C(0);
      if (!(math::abs(mean[i][j]) <= moderate<C>() && scale(i, j) <= moderate<C>())) far_parameters = 1;
      first[i][j] = second[i][j] = C(0);
    }
  }
  __syncthreads();
  bool far = far_parameters != 0, add = !to.fresh;

  // Adds the sums in registers to the piece's, and clears them. `free` is a buffer that no thread needs.
  const auto flush = [&](C* free) {
    const auto add_up = [&](C(&sum)[kRight], double* to_sums, int i, int power) {
      double v[kRight];
#pragma unroll
      for (int j = 0; j < kRight; ++j) {
        const double by = far ? 1.0 : static_cast<double>(scale(i, j));
        v[j] = (power == 2 ? by * by : by) * static_cast<double>(sum[j]);
        sum[j] = C(0);
      }
      sum_groups(v, together, reinterpret_cast<double (*)[kThreads]>(free));
#pragma unroll
      for (int j = 0; j < kRight; ++j) {
        if (group != 0 || opaque(k) + i >= components || opaque(d) + j >= dims) continue;
        double* const at = to_sums + (piece * components + opaque(k) + i) * dims + d + j;
        *at = add ? *at + v[j] : v[j];
      }
    };
#pragma unroll
    for (int i = 0; i < kLeft; ++i) {
      add_up(first[i], to.first, i, 1);
      if constexpr (kSecond) add_up(second[i], to.second, i, 2);
    }
    add = true;
    __syncthreads();
  };

  // Of a tile, a thread fetches a few components' responsibilities in one row and a few dimensions of another.
  C q_next[kLeft], x_next[kRight];
  const int q_row = thread / shape.left, q_at = thread % shape.left * kLeft, x_row = thread / shape.right, x_at = right * kRight;
  const bool whole = dense_quads<C, kLeft, kRight>(m, to.weights);
  const auto fetch = [&](int64_t row) {
    if (whole) {
      const bool q_in = q_row < shape.tile_rows && row + q_row < rows.end && k_first + q_at < components;
      const bool x_in = x_row < shape.tile_rows && row + x_row < rows.end && d < dims;
#pragma unroll
      for (int e = 0; e < kLeft; ++e) q_next[e] = C(0);
#pragma unroll
      for (int e = 0; e < kRight; ++e) x_next[e] = C(0);
      if (q_in) take(static_cast<const C*>(to.weights) + (row + q_row) * components + k_first + q_at, q_next);
      if (x_in) take(static_cast<const C*>(m.x.data) + (to.first_row + row + x_row) * m.x.row.stride[0] + d, x_next);
      return;
    }
    const C* const q = static_cast<const C*>(to.weights) + (row + q_row) * components + k_first + q_at;
    const bool q_used = q_row < shape.tile_rows && row + q_row < rows.end;
#pragma unroll
    for (int e = 0; e < kLeft; ++e) q_next[e] = q_used && k_first + q_at + e < components ? q[e] : C(0);
    const bool x_used = x_row < shape.tile_rows && row + x_row < rows.end;
    load_run(m.x, x_used ? row_start(m.x, to.first_row + row + x_row) : nullptr, d_first + x_at, dims, x_next);
  };

  const int of_group = (shape.tile_rows + shape.groups - 1) / shape.groups;
  int buffer = 0, number = 0, since = 0;
  if (rows.begin < rows.end) fetch(rows.begin);
  for (int64_t row = rows.begin; row < rows.end; row += shape.tile_rows, ++number) {
    C* const q_tile = stage[buffer];
    C* const x_tile = q_tile + shape.tile_rows * q_width;
    if (q_row < shape.tile_rows) {
      store(q_tile + q_row * q_width + q_at, q_next);
      if (right_tile == 0) {
#pragma unroll
        for (int e = 0; e < kLeft; ++e) counts[e][thread] += static_cast<double>(q_next[e]);
      }
    }
    if (x_row < shape.tile_rows) {
      bool near = true;
#pragma unroll
      for (int e = 0; e < kRight; ++e) {
        x_next[e] = read_x(m, x_next[e], d + e);
        near = near & (math::abs(x_next[e]) <= moderate<C>());
      }
      store(x_tile + x_row * x_width + x_at, x_next);
      if (!near) far_tile[buffer] = number;
    }
    __syncthreads();
    if ((!far && far_tile[buffer] == number) || since >= SumsTile<C>::kFlush) {
      flush(stage[buffer ^ 1]);
      far = far || far_tile[buffer] == number;
      since = 0;
    }
    if (row + shape.tile_rows < rows.end) fetch(row + shape.tile_rows);
    since += of_group;
    const C* q_of = q_tile + group * q_width + left * kLeft;
    const C* x_of = x_tile + group * x_width + right * kRight;
    const int q_stride = shape.groups * q_width, x_stride = shape.groups * x_width;
    if (!far) {
#pragma unroll 2
      for (int r = group; r < shape.tile_rows; r += shape.groups, q_of += q_stride, x_of += x_stride) {
        C q[kLeft], x[kRight];
        take(q_of, q);
        take(x_of, x);
#pragma unroll
        for (int i = 0; i < kLeft; ++i) {
#pragma unroll
          for (int j = 0; j < kRight; ++j) {
            const C t = x[j] - mean[i][j];
            if constexpr (kSecond) {
              const C v = q[i] * t;
              first[i][j] += v;
              second[i][j] = math::fma(v, t, second[i][j]);
            } else {
              first[i][j] = math::fma(q[i], t, first[i][j]);
            }
          }
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < kLeft; ++i) {
#pragma unroll
        for (int j = 0; j < kRight; ++j) {
#pragma unroll 1
          for (int r = 0; group + r * shape.groups < shape.tile_rows; ++r) {
            const C q = q_of[r * q_stride + i], u = math::standardise(x_of[r * x_stride + j], mean[i][j], scale(i, j));
            const C v = q == C(0) ? C(0) : q * u;  // what is no component's may be infinitely far from it
            first[i][j] += v;
            if constexpr (kSecond) second[i][j] += q == C(0) ? C(0) : v * u;
          }
        }
      }
    }
    buffer ^= 1;
  }
  __syncthreads();
  flush(stage[0]);

  if (right_tile == 0 && thread < q_width && k_first + thread < components) {
    double all = 0.0;
    for (int t = thread / kLeft; t < kThreads; t += shape.left) all += counts[thread % kLeft][t];
    const int64_t at = piece * components + k_first + thread;
    to.counts[at] = to.fresh ? all : to.counts[at] + all;
  }
}

}  // namespace cuda
}  // namespace vae_fast

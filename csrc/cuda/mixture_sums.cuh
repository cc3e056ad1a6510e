// Sums over rows, weighed by responsibilities: what the parameters' gradients and the M-step are made of. Each block has some of the sums
// in registers and goes through one piece of the rows; pieces are added up afterwards, in order.
#pragma once

#include "mixture_moments_tf32.cuh"

namespace vae_fast {
namespace cuda {

/// The upper triangle of second for full factors, sum over rows of q t t^T; of all components together if `tied`.
template <typename C>
__global__ void __launch_bounds__(kThreads, 2)
    mixture_products_kernel(const __grid_constant__ MixtureArgs m, const __grid_constant__ SumsShape shape,
                            const __grid_constant__ PieceSums to) {
  alignas(16) __shared__ C stage[2][SumsTile<C>::kStage];
  const int thread = static_cast<int>(threadIdx.x), right = thread % shape.right, rest = thread / shape.right;
  const int left = rest % shape.left, group = rest / shape.left, together = shape.left * shape.right, width = 4 * shape.left;
  const int tiles = shape.left_tiles * shape.right_tiles, tile = static_cast<int>(blockIdx.x % tiles);
  const int matrix = static_cast<int>(blockIdx.x / tiles % shape.matrices);
  const int64_t piece = blockIdx.x / tiles / shape.matrices;
  const int left_first = tile / shape.right_tiles * width, right_first = tile % shape.right_tiles * width;
  if (right_first < left_first) return;  // below the diagonal
  const int components = static_cast<int>(m.components), dims = static_cast<int>(m.dims);
  const bool tied = shape.matrices == 1;
  const int k_begin = tied ? 0 : matrix, k_end = tied ? components : matrix + 1;
  const Piece rows(shape, to.rows, piece);

  C sum[4][4], left_next[4], right_next[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[i][j] = C(0);
  }
  bool add = !to.fresh;
  const auto flush = [&](C* free) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      double v[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) v[j] = static_cast<double>(sum[i][j]), sum[i][j] = C(0);
      sum_groups(v, together, reinterpret_cast<double (*)[kThreads]>(free));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int d = left_first + left * 4 + i, e = right_first + right * 4 + j;
        if (group != 0 || e < d || e >= dims) continue;
        double* const at = to.second + ((piece * shape.matrices + matrix) * dims + d) * dims + e;
        *at = add ? *at + v[j] : v[j];
      }
    }
    add = true;
    __syncthreads();
  };

  const int of_row = thread / shape.left, of_width = thread % shape.left * 4;
  const auto difference = [&](const char* x, int k, int d, C(&t)[4]) {
    load_run(m.x, x, d, dims, t);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const bool used = x != nullptr && d + e < dims;
      t[e] = used ? read_x(m, t[e], d + e) - math::bounded(static_cast<const C*>(m.means)[static_cast<int64_t>(k) * dims + d + e]) : C(0);
    }
  };
  const auto fetch = [&](int64_t row, int k) {
    const bool used = of_row < shape.tile_rows && row + of_row < rows.end;
    const char* const x = used ? row_start(m.x, to.first_row + row + of_row) : nullptr;
    const C q = used ? static_cast<const C*>(to.weights)[(row + of_row) * components + k] : C(0);
    difference(x, k, left_first + of_width, left_next);
    difference(x, k, right_first + of_width, right_next);
#pragma unroll
    for (int e = 0; e < 4; ++e) left_next[e] = q == C(0) ? C(0) : q * left_next[e];
  };

  int buffer = 0, since = 0, k = k_begin;
  int64_t row = rows.begin;
  if (row < rows.end) fetch(row, k);
  while (row < rows.end) {
    C* const left_tile = stage[buffer];
    C* const right_tile = left_tile + shape.tile_rows * width;
    if (of_row < shape.tile_rows) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        left_tile[of_row * width + of_width + e] = left_next[e];
        right_tile[of_row * width + of_width + e] = right_next[e];
      }
    }
    __syncthreads();
    if (++k == k_end) k = k_begin, row += shape.tile_rows;
    if (since >= SumsTile<C>::kFlush) flush(stage[buffer ^ 1]), since = 0;
    if (row < rows.end) fetch(row, k);
    since += (shape.tile_rows + shape.groups - 1) / shape.groups;
#pragma unroll 2
    for (int r = group; r < shape.tile_rows; r += shape.groups) {
      C a[4], b[4];
      take(left_tile + r * width + left * 4, a);
      take(right_tile + r * width + right * 4, b);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] = math::fma(a[i], b[j], sum[i][j]);
      }
    }
    buffer ^= 1;
  }
  __syncthreads();
  flush(stage[0]);
}

template <typename C>
cudaError_t launch_mixture_moments(const MixtureArgs& m, const SumsShape& shape, const PieceSums& to, cudaStream_t stream) {
  const unsigned grid = static_cast<unsigned>(shape.pieces * shape.left_tiles * shape.right_tiles);
  const bool second = to.second != nullptr && !m.full;
  if constexpr (sizeof(C) == 4) {
    if (shape.products) {
      const auto kernel = second ? mixture_moments_tf32_kernel<true> : mixture_moments_tf32_kernel<false>;
      VF_START(kernel, grid, kThreads, stream, m, shape, to);
      return cudaGetLastError();
    }
  }
  const auto kernel = second ? mixture_moments_kernel<C, true> : mixture_moments_kernel<C, false>;
  VF_START(kernel, grid, kThreads, stream, m, shape, to);
  return cudaGetLastError();
}

template <typename C>
cudaError_t launch_mixture_products(const MixtureArgs& m, const SumsShape& shape, const PieceSums& to, cudaStream_t stream) {
  const unsigned grid = static_cast<unsigned>(shape.pieces * shape.matrices * shape.left_tiles * shape.right_tiles);
  VF_START(mixture_products_kernel<C>, grid, kThreads, stream, m, shape, to);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace vae_fast

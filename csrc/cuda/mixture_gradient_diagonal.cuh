// grad_x of a diagonal mixture, given the responsibilities: -sum_k q_k u_k / sigma_k.
#pragma once

#include "mixture_joint.cuh"
#include "mixture_plan.h"

namespace vae_fast {
namespace cuda {

/// -v, in units of x, to dimensions d.. of row `row` of the gradient.
template <int N, typename C>
VF_DEVICE void store_gradient(const MixtureArgs& m, const Stream& to, int64_t row, int d, C (&v)[N]) {
  const int dims = static_cast<int>(m.dims);
  const C* const by = static_cast<const C*>(m.x_scale);
#pragma unroll
  for (int j = 0; j < N; ++j) v[j] = by != nullptr && d + j < dims ? -v[j] * by[d + j] : -v[j];
  if (d < dims) store_any<N>(row_start(to, row), to.dtype, d, 1, 0, dims - d, v);
}

/// Diagonal: kWidth threads side by side over the dimensions, a power of two up to kSide, the others over the rows, kRows each. As many
/// components at once as threads are side by side: the buffers are then much the same for every kWidth.
template <typename C, int kWidth, int kRows>
struct GradientTile {
  static constexpr int kDims = sizeof(C) == 8 ? 2 : 4, kStride = kRows * kThreads / kWidth + MixtureTile<C>::kPad;
  static constexpr int kTileRows = kRows * kThreads / kWidth, kTileDims = kWidth * kDims;
  struct Stage {
    alignas(16) C weight[kWidth * kStride];  // [component][row]
    alignas(16) C mean[kWidth * kTileDims];  // [component][dimension]
    alignas(16) C scale[kWidth * kTileDims];
    int32_t extreme;  // the last components of which a squared scale is out of range
  };
};

/// The gradient of a tile of rows from `first` on and dimensions from `d_first` on.
template <typename C, int kWidth, int kRows>
VF_DEVICE void diagonal_gradient(const MixtureArgs& m, const Stream& grad_x, const GradientRows& given, int64_t first, int d_first,
                                 typename GradientTile<C, kWidth, kRows>::Stage (&stage)[2]) {
  using Tile = GradientTile<C, kWidth, kRows>;
  using Stage = typename Tile::Stage;
  constexpr int kDims = Tile::kDims, kTileRows = Tile::kTileRows, kTileDims = Tile::kTileDims, kStride = Tile::kStride;
  const int thread = static_cast<int>(threadIdx.x), side = thread % kWidth, up = thread / kWidth;
  const int components = static_cast<int>(m.components), dims = static_cast<int>(m.dims);
  const int d = d_first + side * kDims;
  if (thread < 2) stage[thread].extreme = -1;
  const int rows = given.rows - first < kTileRows ? static_cast<int>(given.rows - first) : kTileRows;
  C x[kRows][kDims], sum[kRows][kDims];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int r = opaque(up) * kRows + i;
    load_run(m.x, r < rows ? row_start(m.x, given.first_row + first + r) : nullptr, d, dims, x[i]);
#pragma unroll
    for (int j = 0; j < kDims; ++j) x[i][j] = read_x(m, x[i][j], d + j), sum[i][j] = C(0);
  }

  C weight[kRows], mean[kDims], scale[kDims];
  const auto fetch = [&](int k) {
    const C* const q = static_cast<const C*>(given.weights) + first * components + k + side;
    const int row = opaque(up);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int r = row + i * (kThreads / kWidth);
      weight[i] = r < rows && k + side < components ? q[static_cast<int64_t>(r) * components] : C(0);
    }
    const int of = k + row;
    const int64_t at = static_cast<int64_t>(of) * dims + d;
#pragma unroll
    for (int j = 0; j < kDims; ++j) {
      const bool used = row < kWidth && of < components && d + j < dims;
      mean[j] = used ? static_cast<const C*>(m.means)[at + j] : C(0);
      scale[j] = used ? static_cast<const C*>(m.scale)[at + j] : C(0);
    }
  };
  __syncthreads();
  fetch(0);
  int buffer = 0;
  for (int k = 0; k < components; k += kWidth) {
    Stage& s = stage[buffer];
    buffer ^= 1;
#pragma unroll
    for (int i = 0; i < kRows; ++i) s.weight[side * kStride + up + i * (kThreads / kWidth)] = weight[i];
    if (up < kWidth) {
      bool fine = true;
#pragma unroll
      for (int j = 0; j < kDims; ++j) {
        s.mean[up * kTileDims + side * kDims + j] = math::bounded(mean[j]);
        s.scale[up * kTileDims + side * kDims + j] = scale[j];
        fine = fine && (scale[j] == C(0) || (scale[j] >= C(1e-8) && scale[j] <= C(1e15)));
      }
      if (!fine) s.extreme = k;
    }
    __syncthreads();
    if (k + kWidth < components) fetch(k + kWidth);
    const bool extreme = s.extreme == k;
#pragma unroll 1
    for (int c = 0; c < kWidth; ++c) {
      C q[kRows], ms[kDims], rs[kDims];
      take(&s.weight[c * kStride + up * kRows], q);
      take(&s.mean[c * kTileDims + side * kDims], ms);
      take(&s.scale[c * kTileDims + side * kDims], rs);
      if (!extreme) {
#pragma unroll
        for (int j = 0; j < kDims; ++j) {
          const C square = rs[j] * rs[j];
#pragma unroll
          for (int i = 0; i < kRows; ++i) sum[i][j] = math::fma(q[i] * (x[i][j] - ms[j]), square, sum[i][j]);
        }
      } else {
#pragma unroll
        for (int j = 0; j < kDims; ++j) {
#pragma unroll
          for (int i = 0; i < kRows; ++i) {
            const C v = q[i] == C(0) ? C(0) : q[i] * math::standardise(x[i][j], ms[j], rs[j]);
            sum[i][j] = math::fma(v, rs[j], sum[i][j]);
          }
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int r = opaque(up) * kRows + i;
    if (r < rows) store_gradient(m, grad_x, given.first_row + first + r, d, sum[i]);
  }
}

template <typename C, int kWidth>
__global__ void __launch_bounds__(kThreads, 2)
    mixture_gradient_kernel(const __grid_constant__ MixtureArgs m, const __grid_constant__ Stream grad_x,
                            const __grid_constant__ GradientRows given) {
  constexpr int kRows = MixtureTile<C>::kRowsPerThread;
  using Tile = GradientTile<C, kWidth, kRows>;
  __shared__ typename Tile::Stage stage[2];
  const int dim_tiles = (static_cast<int>(m.dims) + Tile::kTileDims - 1) / Tile::kTileDims, block = static_cast<int>(blockIdx.x);
  diagonal_gradient<C, kWidth, kRows>(m, grad_x, given, static_cast<int64_t>(block / dim_tiles) * Tile::kTileRows,
                                      block % dim_tiles * Tile::kTileDims, stage);
}

}  // namespace cuda
}  // namespace vae_fast

// grad_x of a mixture, given the responsibilities: -sum_k q_k (du/dx)^T u, a block of threads per tile of rows and dimensions.
#pragma once

#include <type_traits>

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

/// Diagonal: kWidth threads side by side over the dimensions, a power of two up to kSide, the others over the rows.
template <typename C, int kWidth>
__global__ void __launch_bounds__(kThreads, 2)
    mixture_gradient_kernel(const __grid_constant__ MixtureArgs m, const __grid_constant__ Stream grad_x,
                            const __grid_constant__ GradientRows given) {
  constexpr int kRows = MixtureTile<C>::kRowsPerThread, kDims = sizeof(C) == 8 ? 2 : 4, kPad = MixtureTile<C>::kPad;
  constexpr int kTileRows = kRows * kThreads / kWidth, kTileDims = kWidth * kDims, kStride = kTileRows + kPad;
  // as many components at once as threads are side by side: the buffers are then much the same for every kWidth
  struct Stage {
    alignas(16) C weight[kWidth * kStride];  // [component][row]
    alignas(16) C mean[kWidth * kTileDims];  // [component][dimension]
    alignas(16) C scale[kWidth * kTileDims];
    int32_t extreme;  // the last components of which a squared scale is out of range
  };
  __shared__ Stage stage[2];
  const int thread = static_cast<int>(threadIdx.x), side = thread % kWidth, up = thread / kWidth;
  const int components = static_cast<int>(m.components), dims = static_cast<int>(m.dims);
  const int dim_tiles = (dims + kTileDims - 1) / kTileDims;
  if (thread < 2) stage[thread].extreme = -1;
  const int64_t first = static_cast<int64_t>(static_cast<int>(blockIdx.x) / dim_tiles) * kTileRows;
  const int d_first = static_cast<int>(blockIdx.x) % dim_tiles * kTileDims, d = d_first + side * kDims;
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

/// Full: for every component v = q u, then v times the transposed factor.
template <typename C>
__global__ void __launch_bounds__(kThreads, 2)
    mixture_full_gradient_kernel(const __grid_constant__ MixtureArgs m, const __grid_constant__ Stream grad_x,
                                 const __grid_constant__ GradientRows given) {
  using Tile = MixtureTile<C>;
  constexpr int kRows = Tile::kRowsPerThread, kColumns = ProductStage<C>::kColumns;
  __shared__ ProductStage<C> stage[2];
  const int thread = static_cast<int>(threadIdx.x), tx = thread % kSide, ty = thread / kSide, row = thread / Tile::kLanes;
  const int components = static_cast<int>(m.components), dims = static_cast<int>(m.dims);
  C* const weighed = static_cast<C*>(given.slabs) + 2 * static_cast<int64_t>(blockIdx.x) * Tile::kRows * dims;
  C* const gradient = weighed + static_cast<int64_t>(Tile::kRows) * dims;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * Tile::kRows;
  int buffer = 0;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * Tile::kRows; first < given.rows; first += stride) {
    const char* const x_row = first + row < given.rows ? row_start(m.x, given.first_row + first + row) : nullptr;
    const C* const v_row = weighed + static_cast<int64_t>(row) * dims;
    for (int k = 0; k < components; ++k) {
      const int64_t of_k = k * m.factor_stride;
      C q[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int64_t r = first + ty * kRows + i;
        q[i] = r < given.rows ? static_cast<const C*>(given.weights)[r * components + k] : C(0);
      }
      for (int e0 = 0; e0 < dims; e0 += kColumns) {
        C u[kRows][4] = {};
        multiply(stage, buffer, 0, e0 + kColumns < dims ? e0 + kColumns : dims, Difference<C>{m, x_row, k},
                 Factor<C>{static_cast<const C*>(m.scale) + of_k, e0, dims}, u);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int e = e0 + tx * 4 + j;
            if (e < dims) weighed[(opaque(ty) * kRows + i) * static_cast<int64_t>(dims) + e] = q[i] == C(0) ? C(0) : q[i] * u[i][j];
          }
        }
      }
      __syncthreads();
      const auto fetch_v = [&](int e, C(&v)[Tile::kPerThread]) {
#pragma unroll
        for (int p = 0; p < Tile::kPerThread; ++p) v[p] = e + p < dims ? v_row[e + p] : C(0);
      };
      for (int d0 = 0; d0 < dims; d0 += kColumns) {
        C sum[kRows][4] = {};
        multiply(stage, buffer, d0, dims, fetch_v, Factor<C>{static_cast<const C*>(m.transposed) + of_k, d0, dims}, sum);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const int64_t at = (opaque(ty) * kRows + i) * static_cast<int64_t>(dims) + d0 + tx * 4;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if (k > 0 && d0 + tx * 4 + j < dims) sum[i][j] += gradient[at + j];
            if (k + 1 < components && d0 + tx * 4 + j < dims) gradient[at + j] = sum[i][j];
          }
          const int64_t r = first + ty * kRows + i;
          if (k + 1 == components && r < given.rows) store_gradient(m, grad_x, given.first_row + r, d0 + tx * 4, sum[i]);
        }
      }
    }
  }
}

template <typename C>
cudaError_t launch_mixture_gradient(const MixtureArgs& m, const Stream& grad_x, const GradientRows& rows, int32_t slabs,
                                    cudaStream_t stream) {
  using Tile = MixtureTile<C>;
  if (m.full) {
    const int64_t tiles = ceil_div(rows.rows, Tile::kRows);
    const unsigned grid = static_cast<unsigned>(tiles < slabs ? tiles : slabs);
    VF_START(mixture_full_gradient_kernel<C>, grid, kThreads, stream, m, grad_x, rows);
    return cudaGetLastError();
  }
  constexpr int kDims = sizeof(C) == 8 ? 2 : 4;
  const auto launch = [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    const int64_t units = ceil_div(rows.rows, Tile::kRowsPerThread * kThreads / kWidth) * ceil_div(m.dims, kWidth * kDims);
    VF_START((mixture_gradient_kernel<C, kWidth>), static_cast<unsigned>(units), kThreads, stream, m, grad_x, rows);
  };
  if (m.dims <= kDims) {
    launch(std::integral_constant<int, 1>());
  } else if (m.dims <= 2 * kDims) {
    launch(std::integral_constant<int, 2>());
  } else if (m.dims <= 4 * kDims) {
    launch(std::integral_constant<int, 4>());
  } else if (m.dims <= 8 * kDims) {
    launch(std::integral_constant<int, 8>());
  } else {
    launch(std::integral_constant<int, kSide>());
  }
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace vae_fast

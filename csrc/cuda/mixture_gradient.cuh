// grad_x of a mixture, given the responsibilities: -sum_k q_k (du/dx)^T u, a block of threads per tile of rows and dimensions.
#pragma once

#include <type_traits>

#include "mixture_gradient_tf32.cuh"

namespace vae_fast {
namespace cuda {

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
  if constexpr (sizeof(C) == 4) {
    if (weighed_by_products(m, 64)) {  // of rows there are as many as it takes
      const int64_t units = ceil_div(rows.rows, WeighedTile::kSums) * ceil_div(m.dims, WeighedTile::kSums);
      VF_START(mixture_gradient_tf32_kernel<C>, static_cast<unsigned>(units), kThreads, stream, m, grad_x, rows);
      return cudaGetLastError();
    }
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

// grad_x of a diagonal mixture on tensor cores: sum_k q_k t_k (x - mean_k) = y sum_k q_k t_k - sum_k q_k m_k t_k with y = x - c, m = mean -
// c and t = 1 / sigma^2.
#pragma once

#include "mixture_gradient_diagonal.cuh"
#include "mixture_weighed_tf32.cuh"

namespace vae_fast {
namespace cuda {

/// mixture_gradient_kernel by products: a block has 64 rows and 64 dimensions. A template, so that one file compiles it.
template <typename C>
__global__ void __launch_bounds__(kThreads, 2)
    mixture_gradient_tf32_kernel(const __grid_constant__ MixtureArgs m, const __grid_constant__ Stream grad_x,
                                 const __grid_constant__ GradientRows given) {
  using Tile = WeighedTile;
  using Otherwise = GradientTile<C, kSide, 4>;
  static_assert(Otherwise::kTileRows == Tile::kSums && Otherwise::kTileDims == Tile::kSums, "the same tile");
  __shared__ union Shared {
    Tile stage[2];
    typename Otherwise::Stage otherwise[2];
  } shared;
  const int components = static_cast<int>(m.components), dims = static_cast<int>(m.dims);
  const int dim_tiles = (dims + Tile::kSums - 1) / Tile::kSums, block = static_cast<int>(blockIdx.x);
  const int64_t first = static_cast<int64_t>(block / dim_tiles) * Tile::kSums;
  const int d_first = block % dim_tiles * Tile::kSums, d_own = d_first + Tile::column();
  const int rows = given.rows - first < Tile::kSums ? static_cast<int>(given.rows - first) : Tile::kSums;
  const C* const weights = static_cast<const C*>(given.weights) + first * components;
  const C centre = d_own < dims ? m.centre[d_own] : C(0);

  C q[4], mean[4], scale[4];
  // where the first of them is, in the tile that comes next
  const C* q_next = weights + static_cast<int64_t>(Tile::sum(0)) * components + Tile::term(0);
  const C* mean_next = static_cast<const C*>(m.means) + static_cast<int64_t>(Tile::column_term(0)) * dims + d_own;
  const C* scale_next = static_cast<const C*>(m.scale) + static_cast<int64_t>(Tile::column_term(0)) * dims + d_own;
  const auto fetch = [&](int first_k) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const bool weighs = Tile::sum(e) < rows && first_k + Tile::term(e) < components;
      q[e] = weighs ? q_next[e % 2 * 8 * static_cast<int64_t>(components) + e / 2 * 4] : C(0);
      const bool used = first_k + Tile::column_term(e) < components && d_own < dims;
      mean[e] = used ? mean_next[e * 4 * static_cast<int64_t>(dims)] : centre;
      scale[e] = used ? scale_next[e * 4 * static_cast<int64_t>(dims)] : C(1);  // of no weight
    }
    q_next += Tile::kSteps, mean_next += Tile::kSteps * static_cast<int64_t>(dims), scale_next += Tile::kSteps * static_cast<int64_t>(dims);
  };
  bool near = kTensorCores;
  const auto put = [&](Tile& s) {
    Parts square[4], linear[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const C about = math::bounded(mean[e]) - centre, t = scale[e] * scale[e];
      near = near & (math::abs(q[e]) <= Tile::kMostWeight) & (math::abs(about) <= Tile::kFarthest);
      near = near & (scale[e] >= Tile::kWidest) & (scale[e] <= Tile::kFarthest);
      square[e] = Parts::of(t), linear[e] = Parts::of(about, t);
    }
    s.put_weights(q);
    s.put(0, square);
    s.put(1, linear);
  };

  WeighedSums sums;
  sums.clear();
  fetch(0);
  int buffer = 0;
  for (int k = 0; k < components; k += Tile::kSteps) {
    Tile& s = shared.stage[buffer];
    buffer ^= 1;
    put(s);
    __syncthreads();
    if (k + Tile::kSteps < components) fetch(k + Tile::kSteps);
    sums.template add<2>(s);
  }
  // y times the first sums, less the second
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const int i = n / 4, e = n / 2 % 2 * 2, j = n % 2, row = opaque(WeighedSums::left(i, e)), d = d_first + WeighedSums::right(j, e);
    C x[2];
    load_run(m.x, row < rows ? row_start(m.x, given.first_row + first + row) : nullptr, d, dims, x);
#pragma unroll
    for (int f = 0; f < 2; ++f) {
      const C y = row < rows && d + f < dims ? math::bounded(x[f]) - m.centre[d + f] : C(0);
      near = near & (math::abs(y) <= Tile::kFarthest);
      sums.of[0][i][j][e + f] = math::fma(y, sums.of[0][i][j][e + f], -sums.of[1][i][j][e + f]);
    }
  }
  if (__syncthreads_or(!near)) return diagonal_gradient<C, kSide, 4>(m, grad_x, given, first, d_first, shared.otherwise);
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const int i = n / 4, e = n / 2 % 2 * 2, j = n % 2, row = opaque(WeighedSums::left(i, e)), d = d_first + WeighedSums::right(j, e);
    C v[2] = {sums.of[0][i][j][e], sums.of[0][i][j][e + 1]};
    if (row < rows) store_gradient(m, grad_x, given.first_row + first + row, d, v);
  }
}

}  // namespace cuda
}  // namespace vae_fast

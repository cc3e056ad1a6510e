// Moments of diagonal components on tensor cores: sums over rows of q y and q y^2 with y = x - c, of which those about the means are made
// in double: with m = mean - c and r = 1 / sigma, sum q u = r (sum q y - m sum q) and sum q u^2 = r^2 (sum q y^2 - 2 m sum q y + m^2 sum
// q).
#pragma once

#include "mixture_moments.cuh"
#include "mixture_weighed_tf32.cuh"

namespace vae_fast {
namespace cuda {

/// mixture_moments_kernel where SumsShape::products: a block has 64 components and 64 dimensions.
template <bool kSecond>
__global__ void __launch_bounds__(kThreads, 2)
    mixture_moments_tf32_kernel(const __grid_constant__ MixtureArgs m, const __grid_constant__ SumsShape shape,
                                const __grid_constant__ PieceSums to) {
  using Tile = WeighedTile;
  constexpr int kFlush = 256;  // rows that are added up in float, then in double
  __shared__ Tile stage[2];
  const int tiles = shape.left_tiles * shape.right_tiles, tile = static_cast<int>(blockIdx.x) % tiles;
  const int64_t piece = blockIdx.x / tiles;
  const int right_tile = tile % shape.right_tiles;
  const int k_first = tile / shape.right_tiles * Tile::kSums, d_first = right_tile * Tile::kSums, d_own = d_first + Tile::column();
  const int components = static_cast<int>(m.components), dims = static_cast<int>(m.dims);
  const Piece rows(shape, to.rows, piece);
  const float* const weights = static_cast<const float*>(to.weights);

  float q[4], x[4], count[2] = {};  // the weights that a thread fetches are of two components
  const float centre = d_own < dims ? m.centre[d_own] : 0.0f;
  const bool dense = m.x.dtype == DType::kFloat && m.x.inner_stride == 1 && m.x.row.dims == 1;
  // where the first of them is, in the tile that comes next
  const float* q_next = weights + (rows.begin + Tile::term(0)) * components + k_first + Tile::sum(0);
  const float* x_next =
      static_cast<const float*>(m.x.data) + (to.first_row + rows.begin + Tile::column_term(0)) * m.x.row.stride[0] + d_own;
  const auto fetch = [&](int64_t row) {
    const int count_of_rows = rows.end - row < Tile::kSteps ? static_cast<int>(rows.end - row) : Tile::kSteps;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const bool weighs = Tile::term(e) < count_of_rows && k_first + Tile::sum(e) < components;
      q[e] = weighs ? q_next[e / 2 * 4 * static_cast<int64_t>(components) + e % 2 * 8] : 0.0f;
      const bool used = Tile::column_term(e) < count_of_rows && d_own < dims;
      float own[1] = {0.0f};
      if (dense) {
        if (used) own[0] = x_next[e * 4 * m.x.row.stride[0]];
      } else {
        load_run(m.x, used ? row_start(m.x, to.first_row + row + Tile::column_term(e)) : nullptr, d_own, dims, own);
      }
      x[e] = used ? own[0] : centre;
    }
    q_next += Tile::kSteps * static_cast<int64_t>(components);
    x_next += Tile::kSteps * m.x.row.stride[0];
  };
  /// Whether products of what was fetched are in range.
  const auto put = [&](Tile& s) {
    Parts linear[4], square[4];
    bool near = true;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float y = math::bounded(x[e]) - centre;
      count[e % 2] += q[e];
      near = near & (math::abs(q[e]) <= Tile::kMostWeight) & (math::abs(y) <= Tile::kFarthest);
      linear[e] = Parts::of(y), square[e] = Parts::of(y, y);
    }
    s.put_weights(q);
    s.put(0, linear);
    if constexpr (kSecond) s.put(1, square);
    return near;
  };

  WeighedSums sums;
  sums.clear();
  bool add = !to.fresh;
  // Adds the sums in registers to the piece's, and clears them. `free` is a buffer that no thread needs.
  const auto flush = [&](Tile& free) {
    // of a component, four lanes of two warps have counts
    double (*const parts)[Tile::kSums] = reinterpret_cast<double (*)[Tile::kSums]>(&free);
    double* const counts = parts[8];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      parts[Tile::warp() / 4 * 4 + Tile::lane() % 4][Tile::sum(e)] = static_cast<double>(count[e]);
      count[e] = 0.0f;
    }
    __syncthreads();
    const int own = opaque(static_cast<int>(threadIdx.x));
    if (own < Tile::kSums) {
      double all = 0.0;
      for (int t = 0; t < 8; ++t) all += parts[t][own];
      counts[own] = all;
      if (right_tile == 0 && k_first + own < components) {
        double* const to_count = to.counts + piece * components + k_first + own;
        *to_count = add ? *to_count + all : all;
      }
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < 16; ++n) {
      const int i = n / 8, j = n / 4 % 2, e = n % 4;
      const int left = opaque(WeighedSums::left(i, e)), k = k_first + left, d = d_first + opaque(WeighedSums::right(j, e));
      if (k >= components || d >= dims) continue;
      const int64_t of = static_cast<int64_t>(k) * dims + d, to_sum = piece * components * dims + of;
      const double mean = static_cast<double>(math::bounded(static_cast<const float*>(m.means)[of])) - static_cast<double>(m.centre[d]);
      const double scale = static_cast<double>(static_cast<const float*>(m.scale)[of]), all = counts[left];
      const double first = static_cast<double>(sums.of[0][i][j][e]), about = first - mean * all;
      to.first[to_sum] = (add ? to.first[to_sum] : 0.0) + scale * about;
      if constexpr (kSecond) {
        const double second = static_cast<double>(sums.of[1][i][j][e]) - mean * (first + about);
        to.second[to_sum] = (add ? to.second[to_sum] : 0.0) + scale * scale * second;
      }
    }
    sums.clear();
    add = true;
    __syncthreads();
  };
  // The same of rows for which products may be out of range, one after the other.
  const auto add_apart = [&](int64_t begin, int64_t end) {
    const int own = opaque(static_cast<int>(threadIdx.x));
    if (own < Tile::kSums && right_tile == 0 && k_first + own < components) {
      double* const to_count = to.counts + piece * components + k_first + own;
      double all = add ? *to_count : 0.0;
      for (int64_t row = begin; row < end; ++row) all += static_cast<double>(weights[row * components + k_first + own]);
      *to_count = all;
    }
#pragma unroll 1
    for (int n = own; n < Tile::kSums * Tile::kSums; n += kThreads) {
      const int k = k_first + n / Tile::kSums, d = d_first + n % Tile::kSums;
      if (k >= components || d >= dims) continue;
      const int64_t of = static_cast<int64_t>(k) * dims + d, to_sum = piece * components * dims + of;
      const float mean = math::bounded(static_cast<const float*>(m.means)[of]), scale = static_cast<const float*>(m.scale)[of];
      double first = add ? to.first[to_sum] : 0.0, second = add && kSecond ? to.second[to_sum] : 0.0;
#pragma unroll 1
      for (int64_t row = begin; row < end; ++row) {
        const float weight = weights[row * components + k];
        if (weight == 0.0f) continue;  // what is no component's may be infinitely far from it
        float at[1];
        load_run(m.x, row_start(m.x, to.first_row + row), d, dims, at);
        const float u = math::standardise(math::bounded(at[0]), mean, scale), v = weight * u;
        first += static_cast<double>(v), second += static_cast<double>(v * u);
      }
      to.first[to_sum] = first;
      if constexpr (kSecond) to.second[to_sum] = second;
    }
    sums.clear();
    count[0] = count[1] = 0.0f;
    add = true;
    __syncthreads();
  };

  int buffer = 0;
  int64_t added = rows.begin;  // the first row whose terms are not in the piece's sums
  if (rows.begin < rows.end) fetch(rows.begin);
  for (int64_t row = rows.begin; row < rows.end; row += Tile::kSteps) {
    if (row - added >= kFlush) flush(stage[buffer]), added = row;
    const bool near = kTensorCores && put(stage[buffer]);
    const int far = __syncthreads_or(!near);
    const int64_t next = row + Tile::kSteps;
    if (next < rows.end) fetch(next);
    if (far != 0) {
      add_apart(added, next < rows.end ? next : rows.end);
      added = next;
    } else {
      sums.template add<kSecond ? 2 : 1>(stage[buffer]);
    }
    buffer ^= 1;
  }
  __syncthreads();
  flush(stage[0]);
}

}  // namespace cuda
}  // namespace vae_fast

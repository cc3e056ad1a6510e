// Sums over rows of a mixture dimension by dimension, for the gradients of its parameters: as mixture_moments.cuh, but that each dimension
// has responsibilities of its own, which are found here.
#pragma once

#include "mixture_dims.cuh"
#include "mixture_moments.cuh"

namespace vae_fast {
namespace cuda {

template <typename C, bool kWeighted, bool kJoint>
struct DimsSumsShared {
  using Tile = DimsSumsTile<C>;
  static constexpr int kSums = 3 * Tile::kRight + 1;
  // of rows [row][dimension], shift as math::mixture_shift gives it; and [row][component]
  alignas(16) C x[Tile::kStage], coefficient[Tile::kStage], shift[Tile::kStage];
  alignas(16) C log_weight[kWeighted ? 2 * Tile::kStage : 4], weight[kJoint ? 2 * Tile::kStage : 4];
  double sums[kSums][kThreads];
  int32_t far_tile, far_parameters;
};

/// counts, first and second of MixtureBackwardArgs; kJoint: with the responsibilities of joint densities added to each dimension's.
template <typename C, bool kWeighted, bool kJoint>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 1 : 2)
    mixture_dims_sums_kernel(const __grid_constant__ MixtureBackwardArgs args, const __grid_constant__ SumsShape shape,
                             const __grid_constant__ PieceSums to) {
  using Shared = DimsSumsShared<C, kWeighted, kJoint>;
  using Tile = DimsSumsTile<C>;
  constexpr int kLeft = Tile::kLeft, kRight = Tile::kRight;
  __shared__ Shared shared;
  const MixtureArgs& m = args.mixture;
  const int thread = static_cast<int>(threadIdx.x), right = thread % shape.right, rest = thread / shape.right;
  const int left = rest % shape.left, group = rest / shape.left, together = shape.left * shape.right;
  const int tiles = shape.left_tiles * shape.right_tiles, tile = static_cast<int>(blockIdx.x) % tiles;
  const int64_t piece = blockIdx.x / tiles;
  const int right_tile = tile % shape.right_tiles, k_first = tile / shape.right_tiles * shape.left * kLeft;
  const int d_first = right_tile * shape.right * kRight, k = k_first + left * kLeft, d = d_first + right * kRight;
  const int components = static_cast<int>(m.components), dims = static_cast<int>(m.dims);
  const int q_width = shape.left * kLeft, x_width = shape.right * kRight;
  const Piece rows(shape, to.rows, piece);
  const C* const shifts = static_cast<const C*>(args.dim_normaliser);
  const C* const totals = shifts + m.rows * m.dims;
  const auto moderate = [] { return sizeof(C) == 8 ? static_cast<C>(1e150) : static_cast<C>(1e15); };

  if (thread == 0) shared.far_tile = -1, shared.far_parameters = 0;
  __syncthreads();
  C mean[kLeft][kRight], inverse[kLeft][kRight], constant[kLeft][kRight];
  C count[kLeft][kRight] = {}, first[kLeft][kRight] = {}, second[kLeft][kRight] = {}, weights[kLeft] = {};
  double of_k[kLeft] = {};
#pragma unroll
  for (int i = 0; i < kLeft; ++i) {
#pragma unroll
    for (int j = 0; j < kRight; ++j) {
      const bool inside = k + i < components && d + j < dims;
      const int64_t at = static_cast<int64_t>(k + i) * dims + d + j;
      mean[i][j] = inside ? math::bounded(static_cast<const C*>(m.means)[at]) : C(0);
      inverse[i][j] = inside ? static_cast<const C*>(m.scale)[at] * math::mixture_dim_unit<C>() : C(0);
      constant[i][j] = inside ? static_cast<const C*>(m.dim_constant)[at] : -math::infinity<C>();
      if (!(math::abs(mean[i][j]) <= moderate() && inverse[i][j] <= moderate() && constant[i][j] <= C(0))) shared.far_parameters = 1;
    }
  }
  __syncthreads();
  const bool far_parameters = shared.far_parameters != 0;
  bool add = !to.fresh;

  // Adds the sums in registers to the piece's, and clears them.
  const auto flush = [&] {
#pragma unroll
    for (int i = 0; i < kLeft; ++i) {
      double v[Shared::kSums];
#pragma unroll
      for (int j = 0; j < kRight; ++j) {
        v[3 * j] = static_cast<double>(count[i][j]);
        v[3 * j + 1] = static_cast<double>(first[i][j]) * (1.0 / math::mixture_dim_unit<double>());
        v[3 * j + 2] = static_cast<double>(second[i][j]) * (1.0 / math::mixture_dim_one<double>());
        count[i][j] = first[i][j] = second[i][j] = C(0);
      }
      v[Shared::kSums - 1] = static_cast<double>(weights[i]);
      weights[i] = C(0);
      sum_groups(v, together, shared.sums);
      const double joint = v[Shared::kSums - 1];
      if (d == 0) of_k[i] += joint;
#pragma unroll
      for (int j = 0; j < kRight; ++j) {
        of_k[i] += v[3 * j];
        if (group != 0 || opaque(k) + i >= components || opaque(d) + j >= dims) continue;
        const int64_t at = (piece * components + opaque(k) + i) * dims + d + j;
        to.first[at] = add ? to.first[at] + v[3 * j + 1] : v[3 * j + 1];
        const double centred = v[3 * j + 2] - v[3 * j] - joint;
        if (to.second != nullptr) to.second[at] = add ? to.second[at] + centred : centred;
      }
    }
    add = true;
    __syncthreads();
  };

  const int of_group = (shape.tile_rows + shape.groups - 1) / shape.groups;
  int since = 0, number = 0;
  for (int64_t row = rows.begin; row < rows.end; row += shape.tile_rows, ++number) {
    for (int r = thread / shape.right; r < shape.tile_rows; r += kThreads / shape.right) {
      const int64_t n = to.first_row + row + r;
      const bool used = row + r < rows.end;
      C x[kRight];
      load_run(m.x, used ? row_start(m.x, n) : nullptr, d, dims, x);
      const C upstream = used ? upstream_of<C>(args.factorized_grad, n) : C(0);
      bool far = false;
#pragma unroll
      for (int j = 0; j < kRight; ++j) {
        const bool inside = used && d + j < dims;
        const int64_t from = n * dims + d + j;
        const C shift = inside ? shifts[from] : C(0);
        const int at = r * x_width + right * kRight + j;
        shared.x[at] = math::bounded(x[j]);
        shared.shift[at] = used ? math::mixture_shift(shift) : math::infinity<C>();
        shared.coefficient[at] = inside ? math::mixture_share(upstream, shift, totals[from]) : C(0);
        far = far || !(shift == C(0) && math::abs(shared.x[at]) <= moderate());
      }
      if (far) shared.far_tile = number;
    }
    if constexpr (kWeighted || kJoint) {
      for (int i = thread; i < shape.tile_rows * q_width; i += kThreads) {
        const int r = i / q_width, of = k_first + i % q_width;  // a power of two
        const bool inside = row + r < rows.end && of < components;
        const int64_t n = row + r;
        if constexpr (kWeighted)
          shared.log_weight[i] = inside ? static_cast<const C*>(m.row_weights)[(to.first_row + n) * components + of] : C(0);
        if constexpr (kJoint) shared.weight[i] = inside ? static_cast<const C*>(to.weights)[n * components + of] : C(0);
      }
    }
    __syncthreads();
    const auto over = [&](auto careful) {
      constexpr bool kCareful = decltype(careful)::value;
#pragma unroll(1)
      for (int r = group; r < shape.tile_rows; r += shape.groups) {
        C x[kRight], coefficient[kRight], shift[kRight] = {}, w[kLeft] = {}, q[kLeft] = {};
        take(&shared.x[r * x_width + right * kRight], x);
        take(&shared.coefficient[r * x_width + right * kRight], coefficient);
        if constexpr (kCareful) take(&shared.shift[r * x_width + right * kRight], shift);
        if constexpr (kWeighted) take(&shared.log_weight[r * q_width + left * kLeft], w);
        if constexpr (kJoint) take(&shared.weight[r * q_width + left * kLeft], q);
#pragma unroll
        for (int i = 0; i < kLeft; ++i) {
          if constexpr (kJoint) weights[i] += q[i];
#pragma unroll
          for (int j = 0; j < kRight; ++j) {
            C u = math::standardise(x[j], mean[i][j], inverse[i][j]);
            C exponent = math::mixture_dim_exponent<kWeighted>(constant[i][j], u * u, w[i]);
            if (kCareful) exponent -= shift[j];
            const C own = coefficient[j] * math::exp2_below(exponent);
            if (kCareful) u = math::held_within(u, math::largest<C>());
            count[i][j] += own;
            const C moment = (kJoint ? q[i] + own : own) * u;
            first[i][j] += moment;
            second[i][j] = math::fma(moment, u, second[i][j]);
          }
        }
      }
    };
    if (far_parameters || shared.far_tile == number) {
      over(std::true_type());
    } else {
      over(std::false_type());
    }
    __syncthreads();
    since += of_group;
    if (since >= Tile::kFlush) flush(), since = 0;
  }
  flush();

  // The counts of this block's dimensions, in the order of the threads.
#pragma unroll
  for (int i = 0; i < kLeft; ++i) {
    shared.sums[0][thread] = of_k[i];
    __syncthreads();
    if (group == 0 && right == 0 && k + i < components) {
      double all = 0.0;
      for (int r = 0; r < shape.right; ++r) all += shared.sums[0][thread + r];
      double& of = to.counts[(piece * shape.right_tiles + right_tile) * components + k + i];
      of = to.fresh ? all : of + all;
    }
    __syncthreads();
  }
}

template <typename C>
cudaError_t launch_mixture_dims_sums(const MixtureBackwardArgs& args, const SumsShape& shape, const PieceSums& to, cudaStream_t stream) {
  const unsigned grid = static_cast<unsigned>(shape.pieces * shape.left_tiles * shape.right_tiles);
  const auto start = [&](auto by_row, auto with_joint) {
    VF_START((mixture_dims_sums_kernel<C, decltype(by_row)::value, decltype(with_joint)::value>), grid, kThreads, stream, args, shape, to);
    return cudaGetLastError();
  };
  using Yes = std::true_type;
  using No = std::false_type;
  const bool joint = to.weights != nullptr;
  if (args.mixture.row_weights != nullptr) return joint ? start(Yes(), Yes()) : start(Yes(), No());
  return joint ? start(No(), Yes()) : start(No(), No());
}

}  // namespace cuda
}  // namespace vae_fast

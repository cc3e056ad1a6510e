// Host side of mixtures: how the backward pass is cut up, the order of its kernels, and the sum over pieces.
#include <algorithm>

#include "mixture_plan.h"

namespace vae_fast {
namespace cuda {

namespace {

constexpr int kOutputs = kWarp, kSplits = kThreads / kOutputs;

/// to[i] = sum over pieces of from[piece][i], each of kSplits threads taking every kSplits-th piece. upper > 0: of upper x upper matrices
/// only the upper triangle was written; the rest is 0.
__global__ void __launch_bounds__(kThreads)
    mixture_pieces_kernel(const double* from, double* to, const int64_t count, const int32_t pieces, const int64_t upper) {
  __shared__ double parts[kSplits][kOutputs];
  const int lane = static_cast<int>(threadIdx.x) % kOutputs, split = static_cast<int>(threadIdx.x) / kOutputs;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kOutputs; first < count; first += static_cast<int64_t>(gridDim.x) * kOutputs) {
    const int64_t i = first + lane;
    const bool used = i < count && (upper == 0 || i / upper % upper <= i % upper);
    double sum = 0.0;
    if (used) {
#pragma unroll 4
      for (int p = split; p < pieces; p += kSplits) sum += from[p * count + i];
    }
    parts[split][lane] = sum;
    __syncthreads();
    if (split == 0 && i < count) {
      for (int s = 1; s < kSplits; ++s) sum += parts[s][lane];
      to[i] = sum;
    }
    __syncthreads();
  }
}

cudaError_t sum_pieces(const double* from, double* to, int64_t count, int32_t pieces, int64_t upper, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  VF_START(mixture_pieces_kernel, capped_grid(ceil_div(count, kOutputs)), kThreads, stream, from, to, count, pieces, upper);
  return cudaGetLastError();
}

int32_t power_of_two_from(int64_t n) {
  int32_t p = 1;
  while (p < n && p < kThreads) p *= 2;
  return p;
}

/// Pieces that fill the device twice over, or once where products leave little to do between two pieces' sums, unless there are too few
/// rows for them to be worth it.
int32_t pieces_of(const SumsShape& s, int64_t rows) {
  const int64_t blocks = static_cast<int64_t>(s.left_tiles) * s.right_tiles * s.matrices;
  const int64_t enough = (s.products ? 2 : 4) * processors() / blocks;
  return static_cast<int32_t>(std::max<int64_t>(1, std::min(enough, ceil_div(rows, 4 * s.tile_rows))));
}

int32_t tiles_of(int64_t n, int64_t tile) { return static_cast<int32_t>(std::max<int64_t>(1, ceil_div(n, tile))); }

template <class Tile>
SumsShape moments_shape(const MixtureArgs& m, int64_t rows, bool products) {
  const int32_t of_k = std::min(power_of_two_from(ceil_div(m.components, Tile::kLeft)), kThreads / Tile::kLeft);
  const int32_t of_d = power_of_two_from(ceil_div(m.dims, Tile::kRight));
  SumsShape s;
  s.products = products;
  s.left = products ? 16 : std::min(of_k, 16), s.right = products ? 16 : std::min(of_d, 16);
  while (s.left * s.right < kThreads && s.right < of_d) s.right *= 2;
  while (s.left * s.right < kThreads && s.left < of_k) s.left *= 2;
  s.groups = kThreads / (s.left * s.right);
  s.tile_rows = kThreads;
  while (!Tile::holds(s.tile_rows, s.left * Tile::kLeft, s.right * Tile::kRight)) s.tile_rows /= 2;
  s.left_tiles = tiles_of(m.components, s.left * Tile::kLeft), s.right_tiles = tiles_of(m.dims, s.right * Tile::kRight);
  s.pieces = pieces_of(s, rows);
  return s;
}

template <typename C>
SumsShape products_shape(const MixtureArgs& m, int64_t rows) {
  SumsShape s;
  s.left = s.right = std::min(power_of_two_from(ceil_div(m.dims, 4)), 16);
  s.groups = kThreads / (s.left * s.right);
  s.tile_rows = SumsTile<C>::kStage / (8 * s.left);
  s.left_tiles = s.right_tiles = tiles_of(m.dims, 4 * s.left);
  s.matrices = m.factor_stride == 0 ? 1 : static_cast<int32_t>(m.components);
  s.pieces = pieces_of(s, rows);
  return s;
}

/// Responsibilities are held for as many rows as this allows, in whole waves of thread blocks where it holds one.
#if defined(__CUDACC__)
constexpr int64_t kWeightsBytes = int64_t{16} << 20;
#else
constexpr int64_t kWeightsBytes = 1 << 16;  // on the shim little, so that tests see rows in several lots
#endif

bool sums_wanted(const MixtureBackwardArgs& args) { return args.counts != nullptr || args.finish != nullptr; }
bool second_wanted(const MixtureBackwardArgs& args) {
  return args.second != nullptr || (args.finish != nullptr && args.finish->grad_log_std != nullptr);
}
bool dims_wanted(const MixtureBackwardArgs& args) { return args.dim_normaliser != nullptr; }
/// Whether responsibilities of joint densities are to be found; absent gradients are the constant 0.
bool joint_wanted(const MixtureBackwardArgs& args) {
  return args.weights == nullptr && !(dims_wanted(args) && args.grad.data == nullptr && args.grad.constant == 0.0);
}
/// Whether they are found where the gradient of the logits of each row will be.
bool in_place(const MixtureBackwardArgs& args) { return args.grad_row_logits != nullptr && !dims_wanted(args); }

template <typename C>
MixturePlan plan_of(const MixtureBackwardArgs& args) {
  const MixtureArgs& m = args.mixture;
  const int64_t tile = kRowsOfBlock[sizeof(C) == 8];
  MixturePlan p;
  p.chunk = m.rows;
  const auto part = [&](int64_t bytes) {
    const int64_t at = p.bytes;
    p.bytes += ceil_div(bytes, 256) * 256;
    return at;
  };
  if (joint_wanted(args) && !in_place(args)) {
    const int64_t row = m.components * static_cast<int64_t>(sizeof(C)), wave = 2 * tile * processors(),
                  most = (tuning().chunk_bytes > 0 ? tuning().chunk_bytes : kWeightsBytes) / row;
    p.chunk = std::min(m.rows, most >= wave ? most / wave * wave : std::max(most / tile * tile, tile));
    p.weights = part(p.chunk * row);
  }
  if (sums_wanted(args)) {
    const bool products = sizeof(C) == 4 && weighed_by_products(m, m.components);
    p.moments = dims_wanted(args) ? moments_shape<DimsSumsTile<C>>(m, p.chunk, false) : moments_shape<SumsTile<C>>(m, p.chunk, products);
    p.counts_pieces = dims_wanted(args) ? p.moments.pieces * p.moments.right_tiles : p.moments.pieces;
    p.counts = part(p.counts_pieces * m.components * 8);
    p.first = part(p.moments.pieces * m.components * m.dims * 8);
    if (second_wanted(args) && m.full) {
      p.products = products_shape<C>(m, p.chunk);
      p.second = part(static_cast<int64_t>(p.products.pieces) * p.products.matrices * m.dims * m.dims * 8);
    } else if (second_wanted(args)) {
      p.second = part(p.moments.pieces * m.components * m.dims * 8);
    }
  }
  if (args.grad_x.data != nullptr && m.full) {
    p.slabs = static_cast<int32_t>(std::min<int64_t>(2 * processors(), ceil_div(p.chunk, tile)));
    p.slab = part(p.slabs * 2 * tile * m.dims * static_cast<int64_t>(sizeof(C)));
  }
  return p;
}

template <typename C>
cudaError_t backward(const MixtureBackwardArgs& args, cudaStream_t stream) {
  const MixtureArgs& m = args.mixture;
  const MixturePlan plan = plan_of<C>(args);
  if (plan.bytes > 0 && args.scratch == nullptr) return cudaErrorInvalidValue;
  char* const scratch = static_cast<char*>(args.scratch);
  const auto doubles = [&](int64_t at) { return reinterpret_cast<double*>(scratch + at); };
  PieceSums sums{};
  if (sums_wanted(args)) {
    sums.counts = doubles(plan.counts), sums.first = doubles(plan.first);
    if (second_wanted(args)) sums.second = doubles(plan.second);
  }
#define VF_RETURN_IF_FAILED(call) \
  if (const cudaError_t error = call; error != cudaSuccess) return error
  for (int64_t row = 0; row < m.rows || row == 0; row += std::max<int64_t>(plan.chunk, 1)) {
    const int64_t rows = std::min(plan.chunk, m.rows - row);
    const C* weights = args.weights == nullptr ? nullptr : static_cast<const C*>(args.weights) + row * m.components;
    if (joint_wanted(args)) {
      C* const to = in_place(args) ? static_cast<C*>(args.grad_row_logits) : reinterpret_cast<C*>(scratch + plan.weights);
      if (rows > 0) VF_RETURN_IF_FAILED(launch_mixture_weights<C>(args, row, rows, to, stream));
      weights = to;
    }
    if (sums_wanted(args)) {
      sums.weights = weights, sums.first_row = row, sums.rows = rows, sums.fresh = row == 0;
      VF_RETURN_IF_FAILED(dims_wanted(args) ? launch_mixture_dims_sums<C>(args, plan.moments, sums, stream)
                                            : launch_mixture_moments<C>(m, plan.moments, sums, stream));
      if (second_wanted(args) && m.full) VF_RETURN_IF_FAILED(launch_mixture_products<C>(m, plan.products, sums, stream));
    }
    const GradientRows gradient{weights, row, rows, scratch + plan.slab};
    if (dims_wanted(args)) {
      if ((args.grad_x.data != nullptr || args.grad_row_logits != nullptr) && rows > 0)
        VF_RETURN_IF_FAILED(launch_mixture_dims_gradient<C>(args, gradient, stream));
    } else if (args.grad_x.data != nullptr && rows > 0 && m.dims > 0) {
      VF_RETURN_IF_FAILED(launch_mixture_gradient<C>(m, args.grad_x, gradient, plan.slabs, stream));
    }
  }
  if (args.grad_row_logits != nullptr && m.rows > 0) VF_RETURN_IF_FAILED(launch_mixture_row_logits<C>(args, stream));
  if (args.finish != nullptr) return launch_mixture_finish<C>(m, *args.finish, sums, plan.moments.pieces, plan.counts_pieces, stream);
  if (args.counts == nullptr) return cudaSuccess;
  const int64_t pairs = m.components * m.dims, pieces = plan.moments.pieces;
  VF_RETURN_IF_FAILED(sum_pieces(sums.counts, args.counts, m.components, plan.counts_pieces, 0, stream));
  VF_RETURN_IF_FAILED(sum_pieces(sums.first, args.first, pairs, pieces, 0, stream));
  if (args.second == nullptr) return cudaSuccess;
  if (!m.full) return sum_pieces(sums.second, args.second, pairs, pieces, 0, stream);
  return sum_pieces(sums.second, args.second, plan.products.matrices * m.dims * m.dims, plan.products.pieces, m.dims, stream);
#undef VF_RETURN_IF_FAILED
}

bool valid(const MixtureArgs& m) {
  constexpr int64_t kMost = int64_t{1} << 30;
  return m.rows >= 0 && m.components >= 1 && m.components < kMost && m.dims >= 0 && m.dims < kMost;
}

bool wanted(const MixtureBackwardArgs& args) { return sums_wanted(args) || args.grad_x.data != nullptr || args.grad_row_logits != nullptr; }

/// Whether what is asked of each dimension, or of rows with weights of their own, goes together.
bool fits(const MixtureBackwardArgs& args) {
  const bool dims = args.mixture.dim_constant != nullptr && !args.mixture.full && args.mixture.dims > 0 && args.weights == nullptr;
  return (!dims_wanted(args) || dims) && (args.grad_row_logits == nullptr || args.mixture.row_weights != nullptr);
}

}  // namespace

cudaError_t mixture(const MixtureForwardArgs& args, cudaStream_t stream) {
  if (!valid(args.mixture)) return cudaErrorInvalidValue;
  const bool dims = args.factorized != nullptr;
  if (dims && (args.mixture.dim_constant == nullptr || args.dim_normaliser == nullptr || args.mixture.full || args.mixture.dims < 1))
    return cudaErrorInvalidValue;
  if (args.mixture.rows == 0) return cudaSuccess;
  const bool is_double = args.mixture.is_double;
  const cudaError_t error = is_double ? launch_mixture<double>(args, stream) : launch_mixture<float>(args, stream);
  if (error != cudaSuccess || !dims) return error;
  return is_double ? launch_mixture_dims<double>(args, stream) : launch_mixture_dims<float>(args, stream);
}

int64_t mixture_scratch_bytes(const MixtureBackwardArgs& args) {
  if (!valid(args.mixture) || !wanted(args)) return 0;
  return args.mixture.is_double ? plan_of<double>(args).bytes : plan_of<float>(args).bytes;
}

cudaError_t mixture_backward(const MixtureBackwardArgs& args, cudaStream_t stream) {
  if (!valid(args.mixture) || (args.finish != nullptr && (args.mixture.full || args.counts != nullptr))) return cudaErrorInvalidValue;
  if (!fits(args)) return cudaErrorInvalidValue;
  if (!wanted(args)) return cudaSuccess;
  return args.mixture.is_double ? backward<double>(args, stream) : backward<float>(args, stream);
}

}  // namespace cuda
}  // namespace vae_fast

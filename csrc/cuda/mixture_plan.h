// How the backward pass of a mixture is cut up: which rows at a time, which threads take which components and dimensions, and where its
// parts lie in scratch memory. Sizes depend on the arguments and the device alone, so the order of every sum does too.
#pragma once

#include "launch.h"

namespace vae_fast {
namespace cuda {

/// How blocks share sums over rows: `left` x `right` threads, a few sums each, times `groups` that take turns at the rows of a tile.
struct SumsShape {
  int32_t left = 1, right = 1, groups = 1;
  int32_t tile_rows = 1;                    // rows in shared memory at once
  int32_t left_tiles = 1, right_tiles = 1;  // blocks that cover the sums
  int32_t matrices = 1;                     // ... of so many matrices
  int32_t pieces = 1;                       // of the rows; each leaves its own sums
  bool products = false;                    // on tensor cores
};

/// Whether the sums over `of` things and dimensions that responsibilities weigh go to tensor cores, 64 of each at a time, if the call
/// permits: where a quarter of the tiles is not empty they take fewer instructions.
inline bool weighed_by_products(const MixtureArgs& m, int64_t of) {
  const int64_t all = ceil_div(of, 64) * 64 * ceil_div(m.dims, 64) * 64;
  return m.products && !m.full && m.centre != nullptr && m.x_scale == nullptr && m.components > 16 && all <= 4 * of * m.dims;
}

template <typename C>
struct SumsTile {
  static constexpr int kLeft = 4, kRight = sizeof(C) == 8 ? 2 : 4;   // moments of a thread: components x dimensions
  static constexpr int kStage = 8192 / static_cast<int>(sizeof(C));  // values in one of the two buffers of shared memory
  static constexpr int kFlush = 512;  // rows that a thread adds up before it adds their sum, in double, to its piece's

  /// Whether there is room for so many rows of components and of dimensions.
  static bool holds(int rows, int left, int right) { return rows * (left + right) <= kStage; }
};

/// Rows of a call and their responsibilities, and where the sums of pieces go: [piece][...], of counts dimension by dimension
/// [piece][right tile][...]. `fresh` is the first call for a piece, whose sums nothing has cleared.
struct PieceSums {
  const void* weights;  // of `rows` rows from first_row on
  int64_t first_row, rows;
  double *counts, *first, *second;
  bool fresh;
};

/// Rows of a call and their responsibilities, for their gradient; null dimension by dimension, where no joint density has one.
struct GradientRows {
  const void* weights;
  int64_t first_row, rows;
  void* slabs;  // full: for each block, rows x dims of q u and of the gradient so far
};

/// What is in the scratch memory: offsets in bytes.
struct MixturePlan {
  int64_t chunk = 0;  // rows whose responsibilities are held at once
  SumsShape moments, products;
  int32_t counts_pieces = 0;  // of the moments' counts
  int32_t slabs = 0;          // blocks of the full gradient
  int64_t counts = 0, first = 0, second = 0, weights = 0, slab = 0, bytes = 0;
};

/// The same of moments dimension by dimension, whose threads have three of each, and a term's constant beside its mean and scale.
template <typename C>
struct DimsSumsTile {
  static constexpr int kLeft = 4, kRight = 2;
  static constexpr int kStage = 4096 / static_cast<int>(sizeof(C));  // values of each dimension of a row; twice as many of each component
  static constexpr int kFlush = 256;

  static bool holds(int rows, int left, int right) { return rows * left <= 2 * kStage && rows * right <= kStage; }
};

constexpr int kRowsOfBlock[2] = {128, 64};  // rows of a tile, in float and double

/// Start the kernels for compute type C; mixture_*.cu compile them.
template <typename C>
cudaError_t launch_mixture(const MixtureForwardArgs& args, cudaStream_t stream);
/// The responsibilities, weighed by the gradient, of `rows` rows from first_row on.
template <typename C>
cudaError_t launch_mixture_weights(const MixtureBackwardArgs& args, int64_t first_row, int64_t rows, void* to, cudaStream_t stream);
template <typename C>
cudaError_t launch_mixture_moments(const MixtureArgs& m, const SumsShape& shape, const PieceSums& to, cudaStream_t stream);
/// The gradients that `finish` tells of, from the sums of `pieces` pieces, and of as many as `counts` of the counts.
template <typename C>
cudaError_t launch_mixture_finish(const MixtureArgs& m, const MixtureFinishArgs& finish, const PieceSums& sums, int32_t pieces,
                                  int32_t counts, cudaStream_t stream);
template <typename C>
cudaError_t launch_mixture_products(const MixtureArgs& m, const SumsShape& shape, const PieceSums& to, cudaStream_t stream);
template <typename C>
cudaError_t launch_mixture_gradient(const MixtureArgs& m, const Stream& grad_x, const GradientRows& rows, int32_t slabs,
                                    cudaStream_t stream);
/// Of densities dimension by dimension: what mixture, the moments and the gradient are of joint ones.
template <typename C>
cudaError_t launch_mixture_dims(const MixtureForwardArgs& args, cudaStream_t stream);
template <typename C>
cudaError_t launch_mixture_dims_sums(const MixtureBackwardArgs& args, const SumsShape& shape, const PieceSums& to, cudaStream_t stream);
template <typename C>
cudaError_t launch_mixture_dims_gradient(const MixtureBackwardArgs& args, const GradientRows& rows, cudaStream_t stream);
/// What grad_row_logits has of the counts becomes the gradient.
template <typename C>
cudaError_t launch_mixture_row_logits(const MixtureBackwardArgs& args, cudaStream_t stream);

}  // namespace cuda
}  // namespace vae_fast

#include "softmax_columns.cuh"

namespace vae_fast {
namespace cuda {

namespace {

/// A warp where it can hold a cell, and more where it cannot or where there are too few cells: what is read a second time stays near.
Groups groups_of(int64_t items, int64_t units, int held) {
  if (units > static_cast<int64_t>(kWarp) * held && tuning().lanes > 0) return Groups::of_lanes(tuning().lanes);
  const int64_t enough = static_cast<int64_t>(processors()) * 32 * kWarp;
  int lanes = kWarp;
  if (units <= static_cast<int64_t>(kWarp) * held) lanes = Groups::choose(items, units, held).lanes;
  if (lanes < kWarp && (items * kWarp >= enough || units < kWarp)) return Groups::of_lanes(lanes);
  lanes = kWarp;
  while (lanes < kThreads && lanes < units && (items * lanes < enough || units > static_cast<int64_t>(lanes) * held)) lanes *= 2;
  return Groups::of_lanes(lanes);
}

template <class Form, Target kTarget>
void start_rows(const SoftmaxArgs& args, int64_t units, cudaStream_t stream) {
  const int64_t items = args.rows * args.outer * args.inner;
  const Groups groups = groups_of(items, units, Form::kHeld);
  const auto kernel = softmax_rows_kernel<Form, kTarget>;
  VF_START(kernel, capped_grid(ceil_div(items, groups.rows_per_block)), kThreads, stream, args, groups);
}

/// Whether a stream of dense rows can be moved by vectors of A, or of float.
template <typename A>
bool fits(const Stream& s, bool or_float) {
  if (s.data == nullptr) return true;
  constexpr int kWidth = 16 / static_cast<int>(sizeof(A));
  return s.inner_stride == 1 && (s.dtype == kDType<A> || (or_float && s.dtype == DType::kFloat)) && rows_aligned(s, kWidth, 16);
}

template <typename A>
bool rows_by_vectors(const SoftmaxArgs& args, cudaStream_t stream) {
  constexpr int kWidth = 16 / static_cast<int>(sizeof(A));
  if (!fits<A>(args.logits, false) || !fits<A>(args.grad, true) || args.k % kWidth != 0 || args.k >= int64_t{1} << 30) return false;
  const int64_t units = args.k / kWidth;
  if (args.target == Target::kIndex) {
    start_rows<Vectors<A, void>, Target::kIndex>(args, units, stream);
  } else if (args.target == Target::kSparse) {
    start_rows<Vectors<A, void>, Target::kSparse>(args, units, stream);
  } else if (fits<float>(args.x, false) && fits<float>(args.grad_x, false)) {
    start_rows<Vectors<A, float>, Target::kDense>(args, units, stream);
  } else if (sizeof(A) == 2 && fits<A>(args.x, false) && fits<A>(args.grad_x, true)) {
    start_rows<Vectors<A, A>, Target::kDense>(args, units, stream);
  } else {
    return false;
  }
  return true;
}

template <typename C>
void rows_by_scalars(const SoftmaxArgs& args, cudaStream_t stream) {
  const int64_t units = ceil_div(args.k, Scalars<C, false>::kWidth);
  if (args.target == Target::kIndex) {
    start_rows<Scalars<C, false>, Target::kIndex>(args, units, stream);
  } else if (args.target == Target::kSparse) {
    start_rows<Scalars<C, false>, Target::kSparse>(args, units, stream);
  } else {
    start_rows<Scalars<C, true>, Target::kDense>(args, units, stream);
  }
}

/// Slices of the classes, so that what a block reads a second time is near; whole lines of memory side by side.
CellColumns columns_of(const SoftmaxArgs& args) {
  CellColumns shape{kThreads, 1};
  while (shape.slices < kWarps && args.k >= 2 * kColumnRun * shape.slices) {
    shape.slices *= 2;
    shape.width /= 2;
  }
  return shape;
}

template <typename C>
void start(const SoftmaxArgs& args, cudaStream_t stream) {
  const int64_t cells = args.outer * args.inner, items = args.rows * cells;
  if (items > 0 && args.inner > 1) {
    const CellColumns shape = columns_of(args);
    VF_START(softmax_columns_kernel<C>, capped_grid(ceil_div(items, shape.width)), kThreads, stream, args, shape);
  } else if (items > 0) {
    if (sizeof(C) == 8 ||
        !(rows_by_vectors<float>(args, stream) || rows_by_vectors<BFloat16>(args, stream) || rows_by_vectors<Half>(args, stream)))
      rows_by_scalars<C>(args, stream);
  }
  if (args.value == nullptr || cells == 1) return;
  const Groups groups = Groups::choose(args.rows, cells, 4);
  VF_START(softmax_sum_kernel<C>, capped_grid(ceil_div(args.rows, groups.rows_per_block)), kThreads, stream, args, groups);
}

}  // namespace

int64_t softmax_scratch(const SoftmaxArgs& args) {
  if (args.target == Target::kSparse) return args.grad.data != nullptr ? args.sparse.entries : 0;
  const int64_t cells = args.outer * args.inner;
  return args.value != nullptr && cells != 1 ? args.rows * cells : 0;
}

cudaError_t softmax_terms(const SoftmaxArgs& args, cudaStream_t stream) {
  const bool one_cell = args.outer == 1 && args.inner == 1;
  if (args.rows < 0 || args.outer < 0 || args.inner < 0 || args.k < 0 || args.k >= int64_t{1} << 31) return cudaErrorInvalidValue;
  if ((args.target != Target::kIndex && !one_cell) || (args.scratch == nullptr && softmax_scratch(args) > 0)) return cudaErrorInvalidValue;
  if (args.rows == 0) return cudaSuccess;
  if (args.is_double) {
    start<double>(args, stream);
  } else {
    start<float>(args, stream);
  }
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace vae_fast

#include "logsumexp_vectors.cuh"

namespace vae_fast {
namespace cuda {

namespace {

/// Slices of k only where the sums alone would leave the device idle.
Columns columns_of(const LogSumExpArgs& args) {
  const int64_t enough = static_cast<int64_t>(processors()) * 1024, sums = args.outer * args.inner;
  Columns shape{kThreads, 1};
  while (shape.slices < kWarps && sums * shape.slices < enough && args.k >= 2 * kRun * shape.slices) {
    shape.slices *= 2;
    shape.width /= 2;
  }
  return shape;
}

template <typename C>
cudaError_t forward(const LogSumExpArgs& args, cudaStream_t stream) {
  if (args.inner == 1) {
    const Groups groups = Groups::choose(args.outer, args.k, kRun);
    VF_START(logsumexp_rows_kernel<C>, capped_grid(ceil_div(args.outer, groups.rows_per_block)), kThreads, stream, args, groups);
  } else {
    const Columns shape = columns_of(args);
    VF_START(logsumexp_columns_kernel<C>, capped_grid(ceil_div(args.outer * args.inner, shape.width)), kThreads, stream, args, shape);
  }
  return cudaGetLastError();
}

template <typename C>
cudaError_t backward(const LogSumExpBackwardArgs& args, cudaStream_t stream) {
  const LogSumExpArgs& f = args.forward;
  if (f.inner == 1) {
    const Groups groups = Groups::choose(f.outer, f.k, kRun);
    VF_START(logsumexp_rows_backward_kernel<C>, capped_grid(ceil_div(f.outer, groups.rows_per_block)), kThreads, stream, args, groups);
  } else {
    const Columns shape = columns_of(f);
    VF_START(logsumexp_columns_backward_kernel<C>, capped_grid(ceil_div(f.outer * f.inner, shape.width)), kThreads, stream, args, shape);
  }
  return cudaGetLastError();
}

/// Groups for rows of vectors of A.
template <typename A>
Groups groups_of(const LogSumExpArgs& args) {
  return Groups::choose(args.outer, args.k / (16 / static_cast<int>(sizeof(A))), kVectorsOfRow<A>);
}

template <typename A>
bool forward_by_vectors(const LogSumExpArgs& args, cudaStream_t stream) {
  if (!fits_row_vectors<A>(args)) return false;
  const Groups groups = groups_of<A>(args);
  VF_START(logsumexp_vectors_kernel<A>, capped_grid(ceil_div(args.outer, groups.rows_per_block)), kThreads, stream, args, groups);
  return true;
}

template <typename A>
bool backward_by_vectors(const LogSumExpBackwardArgs& args, cudaStream_t stream) {
  const LogSumExpArgs& f = args.forward;
  if (!fits_row_vectors<A>(f) || args.grad_w != nullptr || reinterpret_cast<uintptr_t>(args.grad_a) % 16 != 0) return false;
  const Groups groups = groups_of<A>(f);
  VF_START(logsumexp_vectors_backward_kernel<A>, capped_grid(ceil_div(f.outer, groups.rows_per_block)), kThreads, stream, args, groups);
  return true;
}

}  // namespace

cudaError_t logsumexp(const LogSumExpArgs& args, cudaStream_t stream) {
  if (args.outer < 0 || args.k < 0 || args.inner < 0) return cudaErrorInvalidValue;
  if (args.outer == 0 || args.inner == 0) return cudaSuccess;
  if (args.is_double) return forward<double>(args, stream);
  if (forward_by_vectors<float>(args, stream) || forward_by_vectors<BFloat16>(args, stream) || forward_by_vectors<Half>(args, stream))
    return cudaGetLastError();
  return forward<float>(args, stream);
}

cudaError_t logsumexp_backward(const LogSumExpBackwardArgs& args, cudaStream_t stream) {
  const LogSumExpArgs& f = args.forward;
  if (f.outer < 0 || f.k < 0 || f.inner < 0) return cudaErrorInvalidValue;
  if (f.outer == 0 || f.k == 0 || f.inner == 0 || (args.grad_a == nullptr && args.grad_w == nullptr)) return cudaSuccess;
  if (f.is_double) return backward<double>(args, stream);
  if (backward_by_vectors<float>(args, stream) || backward_by_vectors<BFloat16>(args, stream) || backward_by_vectors<Half>(args, stream))
    return cudaGetLastError();
  return backward<float>(args, stream);
}

}  // namespace cuda
}  // namespace vae_fast

// The kernels, by device: csrc/cpu and csrc/cuda implement the same functions over the same plain arguments. Sizes and strides count
// elements and are 64-bit throughout. Nothing here allocates.
#pragma once

#include "terms.h"

#if defined(__CUDACC__) || defined(VF_WITH_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace vae_fast {

/// value[r] = sum over terms of coefficient * sum over columns of f(inputs); loss = loss_scale * sum over r of value[r]; the gradient
/// streams that are not null receive row_grad * df/dinput. One pass over every input.
struct RowTermsArgs {
  int32_t terms_used = 1;  // 1, or 2: a likelihood and a KL of the same rows
  TermArgs term[2];
  int64_t rows = 0;
  bool is_double = false;  // compute and result type: double, else float
  void* value = nullptr;   // (rows,), may be null
  void* loss = nullptr;    // (), may be null
  double loss_scale = 1.0;
  // CUDA only, with loss: one partial sum per thread block, and a counter that is 0 and is left at 0.
  double* partials = nullptr;
  uint32_t* counter = nullptr;
};

/// (seed, offset) by value, or added to what the pointers hold at run time (a CUDA graph's or a saved state).
struct PhiloxSeed {
  uint64_t seed = 0, offset = 0;
  const int64_t* seed_at = nullptr;
  const int64_t* offset_at = nullptr;
};

/// z = mu + std * noise; element i of z, in its logical order (sample, row, column), takes noise i.
struct SampleArgs {
  int64_t samples = 1, rows = 0, columns = 0;
  bool is_double = false;
  int32_t form = 0;  // ScaleForm of `scale`
  Stream mu, scale;  // rows x columns
  Stream noise;      // (samples * rows) x columns; data null: Philox
  PhiloxSeed philox;
  int64_t* rng_state = nullptr;  // (2,): receives (seed, offset); may be null
  Stream z;                      // (samples * rows) x columns, dense
  bool with_kl = false;
  TermArgs kl;               // its inputs 0 and 1 are mu and scale, its rows and columns these
  void* kl_value = nullptr;  // (rows,)
};

/// grad_mu = sum over samples of grad_z; grad_scale = dstd/dscale * sum over samples of grad_z * noise; plus kl's own gradients.
struct SampleBackwardArgs {
  int64_t samples = 1, rows = 0, columns = 0;
  bool is_double = false;
  int32_t form = 0;
  Stream mu, scale, noise;
  PhiloxSeed philox;
  Stream grad_z;               // data null: no gradient reached z
  Stream grad_mu, grad_scale;  // may be null
  bool with_kl = false;
  TermArgs kl;  // row_grad: upstream gradient of kl; its grad[0], grad[1] are null (they are summed into grad_mu, grad_scale)
};

/// out[o, i] = log sum_k w[o, k, i] exp(a[o, k, i]); a is dense (outer, k, inner).
struct LogSumExpArgs {
  int64_t outer = 0, k = 0, inner = 0;
  bool is_double = false;
  const void* a = nullptr;
  DType dtype = DType::kFloat;
  const void* w = nullptr;  // compute type; null: all ones
  int64_t w_stride[3] = {0, 0, 0};
  void* out = nullptr;  // compute type, dense (outer, inner): written forward, read backward
};

/// grad_a = g w e^(a - out), grad_w = g e^(a - out), both dense (outer, k, inner), either may be null.
struct LogSumExpBackwardArgs {
  LogSumExpArgs forward;
  const void* grad_out = nullptr;  // compute type
  int64_t grad_out_stride[2] = {0, 0};
  void* grad_a = nullptr;  // dtype of a
  void* grad_w = nullptr;  // compute type
};

namespace cpu {
void row_terms(const RowTermsArgs& args);
void sample(const SampleArgs& args);
void sample_backward(const SampleBackwardArgs& args);
void logsumexp(const LogSumExpArgs& args);
void logsumexp_backward(const LogSumExpBackwardArgs& args);
/// data *= scale (in double)
void scale(void* data, DType dtype, int64_t count, double scale);
}  // namespace cpu

#if defined(__CUDACC__) || defined(VF_WITH_CUDA)
namespace cuda {
/// Thread blocks that row_terms will launch, which is how many partial sums it needs.
int64_t row_terms_blocks(const RowTermsArgs& args);
cudaError_t row_terms(const RowTermsArgs& args, cudaStream_t stream);
cudaError_t sample(const SampleArgs& args, cudaStream_t stream);
cudaError_t sample_backward(const SampleBackwardArgs& args, cudaStream_t stream);
cudaError_t logsumexp(const LogSumExpArgs& args, cudaStream_t stream);
cudaError_t logsumexp_backward(const LogSumExpBackwardArgs& args, cudaStream_t stream);
/// data *= *scale unless *scale is 1: the decision is made on the device, *scale is float (double if is_double).
cudaError_t scale_unless_one(void* data, DType dtype, int64_t count, const void* scale, bool is_double, cudaStream_t stream);
}  // namespace cuda
#endif

}  // namespace vae_fast

// What the ops hand to the kernels, on CPU and CUDA alike, and the table of every term. Plain data: no torch, no owning pointers.
//
// A new likelihood is one struct in csrc/math and one row in VF_FOR_EACH_TERM.
#pragma once

#include <cstdint>

#include "math/bernoulli.h"
#include "math/gaussian.h"

// X(name, struct). The name is what vae_fast/reference.py calls it.
#define VF_FOR_EACH_SCALE(X, family, Struct)       \
  X(family ".logvar", Struct(ScaleForm::kLogVar))  \
  X(family ".log_std", Struct(ScaleForm::kLogStd)) \
  X(family ".std", Struct(ScaleForm::kStd))        \
  X(family ".var", Struct(ScaleForm::kVar))        \
  X(family ".softplus", Struct(ScaleForm::kSoftplus))
#define VF_FOR_EACH_CLIP(X, family, Struct) \
  X(family ".none", Struct<Clip::kNone>)    \
  X(family ".clamp", Struct<Clip::kClamp>)  \
  X(family ".add", Struct<Clip::kAdd>)      \
  X(family ".bce", Struct<Clip::kBce>)
#define VF_KL(form) Kl<form, false>
#define VF_KL_PRIOR(form) Kl<form, true>
#define VF_GAUSSIAN(form) Gaussian<form>
#define VF_FOR_EACH_KL(X)           \
  VF_FOR_EACH_SCALE(X, "kl", VF_KL) \
  VF_FOR_EACH_SCALE(X, "kl_prior", VF_KL_PRIOR)
#define VF_FOR_EACH_LIKELIHOOD(X)                          \
  VF_FOR_EACH_CLIP(X, "bernoulli_logits", BernoulliLogits) \
  VF_FOR_EACH_CLIP(X, "bernoulli_probs", BernoulliProbs)   \
  X("gaussian_unit", GaussianUnit)                         \
  VF_FOR_EACH_SCALE(X, "gaussian", VF_GAUSSIAN)
#define VF_FOR_EACH_TERM(X) VF_FOR_EACH_KL(X) VF_FOR_EACH_LIKELIHOOD(X)

namespace vae_fast {

enum class DType : int32_t { kFloat, kDouble, kHalf, kBFloat16, kUInt8, kBool };

constexpr int kMaxTermInputs = 4;
constexpr int kMaxBatchDims = 4;

/// Where the rows of a tensor lie: the offset, in elements, of row r of a batch of up to kMaxBatchDims dimensions. A contiguous batch has
/// one. A stride of 0 is a broadcast dimension.
struct RowIndex {
  int32_t dims = 1;
  int64_t size[kMaxBatchDims] = {1, 1, 1, 1};  // innermost last
  int64_t stride[kMaxBatchDims] = {0, 0, 0, 0};

#if defined(__CUDACC__)
  __host__ __device__ __forceinline__
#else
  inline __attribute__((always_inline))
#endif
      int64_t operator()(int64_t row) const {
    if (dims == 1) return row * stride[0];
    int64_t offset = 0;
    for (int d = dims - 1; d > 0; --d) {
      offset += (row % size[d]) * stride[d];
      row /= size[d];
    }
    return offset + row * stride[0];
  }
};

/// One tensor seen as rows of `columns` elements, each row dense (inner_stride 1) or one value broadcast (inner_stride 0).
struct Stream {
  void* data = nullptr;  // null: absent input, or gradient not wanted
  DType dtype = DType::kFloat;
  int32_t inner_stride = 1;
  RowIndex row;
};

/// The upstream gradient of each row: a constant, times a per-row float (double) with a stride if there is one.
struct RowGrad {
  double constant = 1.0;
  const void* data = nullptr;  // float, or double where the term computes in double
  int64_t stride = 1;
};

/// One term of a row sum: coefficient * sum over columns of f(inputs).
struct TermArgs {
  int32_t term = 0;  // index into the table
  bool is_double = false;
  Stream in[kMaxTermInputs];
  Stream grad[kMaxTermInputs];  // dense rows
  RowGrad row_grad;             // multiplies every gradient of this term
  double coefficient = 1.0;     // multiplies the value of this term
  int64_t columns = 0;
  double eps = 1e-9, floor = 0.0;
  // Numbers that lie on the device, if not null: the floor there takes the place of the one here, the scale multiplies coefficient and
  // row_grad. They are read when the kernel runs: no host waits for them.
  const double* floor_at = nullptr;
  const double* scale_at = nullptr;
};

}  // namespace vae_fast

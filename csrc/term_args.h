// What the ops hand to the kernels of row-summed terms, on CPU and CUDA alike. Plain data: no torch, no owning pointers. The terms there
// are stand in term_table.h, which only what expands it includes.
#pragma once

#include <cstdint>

namespace vae_fast {

/// Of bytes, kUInt8 stands for byte / 255, kBool and kByte for the byte itself. The integers are counts.
enum class DType : int32_t { kFloat, kDouble, kHalf, kBFloat16, kUInt8, kBool, kByte, kInt16, kInt32, kInt64 };

/// What a term's inputs are: x and the parameters of p(x), where x may be bytes that stand for [0, 1]; x and parameters, where x counts,
/// most often nothing, and has no derivative; or the mean and scale of a Gaussian, and those of another.
enum class TermKind : int32_t { kLikelihood, kCounts, kKl };

constexpr int kMaxTermInputs = 4;
constexpr int kMaxTermParams = 3;  // given, and worked out from them
constexpr int kMaxGroupNumbers = 5;
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
  // Of a gradient, in double: row r is added to the one that is r / size[1], which rows [r, r + size[1]) of one thread share; the sum of
  // the row if inner_stride is 0.
  bool summed = false;
};

/// The upstream gradient of each row: a constant, times a per-row float (double) with a stride if there is one.
struct RowGrad {
  double constant = 1.0;
  const void* data = nullptr;  // float, or double where the term computes in double
  int64_t stride = 1;
};

/// How an input, a scale, is held between two bounds before it is used; see math/bound.h.
enum class BoundMode : int32_t { kNone, kClamp, kStraightThrough, kSoftClip, kTanh };

struct Bound {
  BoundMode mode = BoundMode::kNone;
  int32_t input = 0;  // which one
  double low = 0.0, high = 0.0;
};

/// One term of a row sum: coefficient * sum over columns of f(inputs).
struct TermArgs {
  int32_t term = 0;  // its place in the table
  bool is_double = false;
  Stream in[kMaxTermInputs];
  Stream grad[kMaxTermInputs];  // dense rows
  RowGrad row_grad;             // multiplies every gradient of this term
  double coefficient = 1.0;     // multiplies the value of this term
  int64_t columns = 0;
  double param[kMaxTermParams] = {};  // as the term's struct names them: a clip's constant, the least value of a KL's element
  Bound bound;
  // Numbers that lie on the device, if not null: the one there takes the place of param[0], of a term that derives nothing from it; the
  // scale multiplies coefficient and row_grad. They are read when the kernel runs: no host waits for them.
  const double* param_at = nullptr;
  const double* scale_at = nullptr;
};

}  // namespace vae_fast

// What the ops of mixtures share: their arguments as the kernels take them, and the gradients that the kernels' sums make.
#pragma once

#include "device.h"
#include "layout.h"
#include "ops.h"

namespace vae_fast {
namespace ops {

enum class Covariance { kDiag, kSpherical, kTied, kFull };

/// Prepared arguments, and the tensors that keep them alive.
struct MixtureProblem {
  bool is_double;
  Covariance covariance;
  Layout layout;
  std::vector<Tensor> keep;
  MixtureArgs args;
  Tensor log_weights, factor, unit;          // not diagonal, double: (K,), (K or 1, D, D), (D,)
  Tensor prepared;                           // diagonal: all that MixtureParametersArgs writes
  const double* log_weights_data = nullptr;  // diagonal: of it
  Tensor row_log_weights;                    // (rows, K), compute type, instead of log weights where every row has its own

  /// `kept`, of a diagonal mixture, is what an earlier call prepared from the same parameters, or undefined, and then receives it.
  MixtureProblem(const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale, string_view name,
                 string_view precision, bool factorized = false, Tensor* kept = nullptr);

  const void* hold(Tensor t) {
    keep.push_back(std::move(t));
    return keep.back().const_data_ptr();
  }
  void need_transposed() {
    if (args.full) args.transposed = hold(factor.transpose(1, 2).to(compute_type(is_double)).contiguous());
  }
  at::TensorOptions options(const Tensor& x) const { return x.options().dtype(compute_type(is_double)); }
  /// 1 / sigma of a diagonal mixture, (K, D), as the kernels read it, in double.
  Tensor inverse() const {
    const int64_t size = args.components * args.dims * (is_double ? 8 : 4);
    return prepared.narrow(0, scale_at, size).view(compute_type(is_double)).view({args.components, args.dims}).to(at::kDouble);
  }

 private:
  int64_t scale_at = 0;  // in `prepared`

  void prepare_diagonal(const Tensor& weight_logits, const Tensor& means, const Tensor& scale, bool products, bool factorized,
                        Tensor* kept);
  void prepare_full(const Tensor& means, const Tensor& scale);
};

/// Sums over rows, in double; see MixtureBackwardArgs.
struct RowSums {
  Tensor counts, first, second;
};

/// Runs the backward kernel for what is wanted: the gradient of x, the sums, the second moments.
RowSums run_mixture_backward(MixtureProblem& p, const Tensor& x, MixtureBackwardArgs& b, Tensor* grad_x, bool sums, bool second);

/// The gradients that `mask` marks (x, weight_logits, means, scale), for weights that `b` describes.
Tensors mixture_gradients(MixtureProblem& p, MixtureBackwardArgs& b, const Tensor& x, const Tensor& weight_logits, const Tensor& means,
                          const Tensor& scale, const Mask& mask);

}  // namespace ops
}  // namespace vae_fast

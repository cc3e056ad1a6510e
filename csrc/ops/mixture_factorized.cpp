// Mixtures dimension by dimension, sum_d log sum_k w_k N(x_d; ...), beside the joint density of the same pass.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/record_function.h>

#include "autograd.h"
#include "mixture_problem.h"

namespace vae_fast {
namespace ops {
namespace {

/// Where the parts of what the forward pass saves begin: shift and total of each row, then of each dimension of each row.
struct Saved {
  char* shift;
  char* total;
  char* dims;

  Saved(void* data, const MixtureArgs& args) : shift(static_cast<char*>(data)) {
    const size_t row = static_cast<size_t>(args.rows) * (args.is_double ? sizeof(double) : sizeof(float));
    total = shift + row;
    dims = total + row;
  }
};

struct FactorizedState {
  std::string covariance;
  Mask mask;
};

struct FactorizedFunction : torch::autograd::Function<FactorizedFunction> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, TensorList inputs, const FactorizedState& s) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [joint, factorized, normaliser] =
        VF_CALL(is_plain(inputs), mixture_factorized, inputs[0], inputs[1], inputs[2], inputs[3], s.covariance);
    auto saved = inputs.vec();
    saved.push_back(normaliser);
    ctx->save_for_backward(saved);
    ctx->mark_non_differentiable({normaliser});
    ctx->set_materialize_grads(false);
    carry(ctx, s);
    return {joint, factorized, normaliser};
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grads) {
    if (!grads[0].defined() && !grads[1].defined()) return torch::autograd::variable_list(5);
    const FactorizedState& s = carried<FactorizedState>(ctx);
    const auto t = ctx->get_saved_variables();
    const auto optional = [](const Tensor& g) { return g.defined() ? OptionalTensor(g) : OptionalTensor(); };
    const bool plain = plain_backward(t, grads[0].defined() ? grads[0] : grads[1]) && is_plain_or_absent(optional(grads[1]));
    const Tensors some = VF_CALL(plain, mixture_factorized_backward, optional(grads[0]), optional(grads[1]), t[0], t[1], t[2], t[3], t[4],
                                 s.covariance, s.mask);
    return spread(some, s.mask, 5);
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> mixture_factorized_kernel(const Tensor& x, const Tensor& weight_logits, const Tensor& means,
                                                             const Tensor& scale, string_view covariance) {
  MixtureProblem p(x, weight_logits, means, scale, covariance, "float32", true);
  Tensor joint = at::empty(p.layout.batch(), p.options(x)), factorized = at::empty_like(joint);
  Tensor normaliser = at::empty({2 + 2 * p.args.dims, p.args.rows}, p.options(x));
  const Saved saved(normaliser.data_ptr(), p.args);
  MixtureForwardArgs f;
  f.mixture = p.args;
  f.log_prob = joint.data_ptr();
  f.shift = saved.shift;
  f.total = saved.total;
  f.factorized = factorized.data_ptr();
  f.dim_normaliser = saved.dims;
  VF_LAUNCH(x, mixture, f);
  return {joint, factorized, normaliser};
}

Tensors mixture_factorized_backward_kernel(const OptionalTensor& grad_joint, const OptionalTensor& grad_factorized, const Tensor& x,
                                           const Tensor& weight_logits, const Tensor& means, const Tensor& scale, const Tensor& normaliser,
                                           string_view covariance, const Mask& mask) {
  MixtureProblem p(x, weight_logits, means, scale, covariance, "float32", true);
  const Tensor kept = normaliser.to(compute_type(p.is_double)).contiguous();
  TORCH_CHECK_VALUE(kept.sizes() == at::IntArrayRef({2 + 2 * p.args.dims, p.args.rows}), "normaliser of shape ", kept.sizes(),
                    ": expected what the forward pass gave");
  const Saved saved(kept.data_ptr(), p.args);
  MixtureBackwardArgs b;
  b.grad.constant = b.factorized_grad.constant = 0.0;  // of what is absent
  if (grad_joint) b.grad = row_grad(*grad_joint, p.layout.batch(), p.is_double, p.keep);
  if (grad_factorized) b.factorized_grad = row_grad(*grad_factorized, p.layout.batch(), p.is_double, p.keep);
  b.shift = saved.shift;
  b.total = saved.total;
  b.dim_normaliser = saved.dims;
  return mixture_gradients(p, b, x, weight_logits, means, scale, mask);
}

std::tuple<Tensor, Tensor, Tensor> mixture_factorized_autograd(const Tensor& x, const Tensor& weight_logits, const Tensor& means,
                                                               const Tensor& scale, string_view covariance) {
  const Tensors inputs{x, weight_logits, means, scale};
  const auto out = FactorizedFunction::apply(TensorList(inputs), FactorizedState{std::string(covariance), requires_grad_mask(inputs)});
  return {out[0], out[1], out[2]};
}

std::tuple<Tensor, Tensor, Tensor> mixture_factorized(const Tensor& x, const Tensor& weight_logits, const Tensor& means,
                                                      const Tensor& scale, const std::string& covariance) {
  const Tensors inputs{x, weight_logits, means, scale};
  const bool plain = is_plain(inputs);
  if (plain && wants_grad(inputs)) {
    RECORD_FUNCTION("vae_fast::mixture_factorized", std::vector<c10::IValue>());
    return mixture_factorized_autograd(x, weight_logits, means, scale, covariance);
  }
  return VF_CALL(plain, mixture_factorized, x, weight_logits, means, scale, covariance);
}

}  // namespace ops
}  // namespace vae_fast

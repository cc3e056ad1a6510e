// Mixtures of Gaussians: densities, responsibilities and the sums of an M-step.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <ATen/record_function.h>

#include "autograd.h"
#include "mixture_problem.h"

namespace vae_fast {
namespace ops {
namespace {

struct MixtureState {
  std::string covariance, precision;
  Mask mask;
  Tensor prepared = {};  // by a forward pass, for its backward pass
};

/// The kernel's work; `prepared` as MixtureProblem's kept.
std::tuple<Tensor, Tensor> forward_of(const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                                      string_view covariance, string_view precision, Tensor* prepared) {
  MixtureProblem p(x, weight_logits, means, scale, covariance, precision, false, prepared);
  Tensor out = at::empty(p.layout.batch(), p.options(x)), normaliser = at::empty({2, p.args.rows}, p.options(x));
  MixtureForwardArgs f;
  f.mixture = p.args;
  f.log_prob = out.data_ptr();
  f.shift = normaliser.data_ptr();
  f.total = static_cast<char*>(f.shift) + static_cast<size_t>(p.args.rows) * normaliser.element_size();
  VF_LAUNCH(x, mixture, f);
  return {out, normaliser};
}

Tensors backward_of(const Tensor& grad, const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                    const Tensor& normaliser, string_view covariance, string_view precision, const Mask& mask, Tensor prepared) {
  MixtureProblem p(x, weight_logits, means, scale, covariance, precision, false, &prepared);
  MixtureBackwardArgs b;
  b.grad = row_grad(grad, p.layout.batch(), p.is_double, p.keep);
  const Tensor saved = normaliser.to(compute_type(p.is_double)).contiguous();
  b.shift = saved.const_data_ptr();
  b.total = static_cast<const char*>(b.shift) + static_cast<size_t>(p.args.rows) * saved.element_size();
  return mixture_gradients(p, b, x, weight_logits, means, scale, mask);
}

struct MixtureFunction : torch::autograd::Function<MixtureFunction> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, TensorList inputs, const MixtureState& s) {
    const at::AutoDispatchBelowADInplaceOrView below;
    MixtureState kept = s;
    auto [out, normaliser] = is_plain(inputs)
                                 ? forward_of(inputs[0], inputs[1], inputs[2], inputs[3], s.covariance, s.precision, &kept.prepared)
                                 : VF_CALL(false, mixture, inputs[0], inputs[1], inputs[2], inputs[3], s.covariance, s.precision);
    auto saved = inputs.vec();
    saved.push_back(normaliser);
    ctx->save_for_backward(saved);
    ctx->mark_non_differentiable({normaliser});
    ctx->set_materialize_grads(false);
    carry(ctx, std::move(kept));
    return {out, normaliser};
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grads) {
    if (!grads[0].defined()) return torch::autograd::variable_list(5);
    const MixtureState& s = carried<MixtureState>(ctx);
    const auto t = ctx->get_saved_variables();
    const Tensors some = plain_backward(t, grads[0])
                             ? backward_of(grads[0], t[0], t[1], t[2], t[3], t[4], s.covariance, s.precision, s.mask, s.prepared)
                             : VF_CALL(false, mixture_backward, grads[0], t[0], t[1], t[2], t[3], t[4], s.covariance, s.precision, s.mask);
    return spread(some, s.mask, 5);
  }
};

struct ResponsibilitiesOp {
  using State = MixtureState;
  static constexpr bool kSavesResult = true;

  static Tensor forward(bool plain, TensorList t, const State& s) {
    return VF_CALL(plain, mixture_responsibilities, t[0], t[1], t[2], t[3], s.covariance, s.precision);
  }
  static Tensors backward(bool plain, const Tensor& grad, TensorList t, const State& s) {
    return VF_CALL(plain, mixture_responsibilities_backward, grad, t[0], t[1], t[2], t[3], t[4], s.covariance, s.precision, s.mask);
  }
};

}  // namespace

std::tuple<Tensor, Tensor> mixture_kernel(const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                                          string_view covariance, string_view precision) {
  return forward_of(x, weight_logits, means, scale, covariance, precision, nullptr);
}

Tensors mixture_backward_kernel(const Tensor& grad, const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                                const Tensor& normaliser, string_view covariance, string_view precision, const Mask& mask) {
  return backward_of(grad, x, weight_logits, means, scale, normaliser, covariance, precision, mask, Tensor());
}

std::tuple<Tensor, Tensor> mixture_autograd(const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                                            string_view covariance, string_view precision) {
  const Tensors inputs{x, weight_logits, means, scale};
  const auto out = MixtureFunction::apply(TensorList(inputs),
                                          MixtureState{std::string(covariance), std::string(precision), requires_grad_mask(inputs), {}});
  return {out[0], out[1]};
}

std::tuple<Tensor, Tensor> mixture(const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                                   const std::string& covariance, const std::string& precision) {
  const Tensors inputs{x, weight_logits, means, scale};
  const bool plain = is_plain(inputs);
  if (plain && wants_grad(inputs)) {
    RECORD_FUNCTION("vae_fast::mixture", std::vector<c10::IValue>());
    return mixture_autograd(x, weight_logits, means, scale, covariance, precision);
  }
  return VF_CALL(plain, mixture, x, weight_logits, means, scale, covariance, precision);
}

Tensor mixture_responsibilities_kernel(const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                                       string_view covariance, string_view precision) {
  MixtureProblem p(x, weight_logits, means, scale, covariance, precision);
  at::DimVector shape(p.layout.batch());
  shape.push_back(p.args.components);
  Tensor out = at::empty(shape, p.options(x));
  MixtureForwardArgs f;
  f.mixture = p.args;
  f.responsibilities = out.data_ptr();
  VF_LAUNCH(x, mixture, f);
  return out;
}

Tensors mixture_responsibilities_backward_kernel(const Tensor& grad, const Tensor& x, const Tensor& weight_logits, const Tensor& means,
                                                 const Tensor& scale, const Tensor& responsibilities, string_view covariance,
                                                 string_view precision, const Mask& mask) {
  MixtureProblem p(x, weight_logits, means, scale, covariance, precision);
  const auto type = compute_type(p.is_double);
  // The softmax's derivative: what reaches l_k is q_k (g_k - sum_j q_j g_j).
  const Tensor q = responsibilities.to(type), g = grad.to(type);
  const Tensor weights = (q * (g - (q * g).sum(-1, true))).contiguous();
  MixtureBackwardArgs b;
  b.weights = weights.const_data_ptr();
  return mixture_gradients(p, b, x, weight_logits, means, scale, mask);
}

Tensor mixture_responsibilities_autograd(const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                                         string_view covariance, string_view precision) {
  const Tensors inputs{x, weight_logits, means, scale};
  return OpFunction<ResponsibilitiesOp>::apply(
      TensorList(inputs), MixtureState{std::string(covariance), std::string(precision), requires_grad_mask(inputs), {}});
}

Tensor mixture_responsibilities(const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                                const std::string& covariance, const std::string& precision) {
  const Tensors inputs{x, weight_logits, means, scale};
  const bool plain = is_plain(inputs);
  if (plain && wants_grad(inputs)) {
    RECORD_FUNCTION("vae_fast::mixture_responsibilities", std::vector<c10::IValue>());
    return mixture_responsibilities_autograd(x, weight_logits, means, scale, covariance, precision);
  }
  return VF_CALL(plain, mixture_responsibilities, x, weight_logits, means, scale, covariance, precision);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> mixture_statistics_kernel(const Tensor& x, const Tensor& weight_logits, const Tensor& means,
                                                                     const Tensor& scale, const OptionalTensor& responsibilities,
                                                                     const OptionalTensor& sample_weight, string_view covariance,
                                                                     string_view precision) {
  // Given responsibilities leave nothing to the scale: a diagonal one of ones keeps its value out of the arithmetic.
  const bool diagonal = covariance == "diag" || covariance == "spherical";
  MixtureProblem p(x, weight_logits, means, responsibilities && diagonal ? at::zeros_like(scale) : scale, covariance, precision);
  TORCH_CHECK_VALUE(weight_logits.dim() == 1, "weight_logits of shape ", weight_logits.sizes(), ": expected [", means.size(0), "]");
  const auto type = compute_type(p.is_double);
  MixtureBackwardArgs b;
  Tensor log_prob = at::empty({0}, p.options(x)), weights, normaliser;
  at::DimVector of_components(p.layout.batch());
  of_components.push_back(p.args.components);
  TORCH_CHECK_VALUE(!responsibilities || responsibilities->sizes() == at::IntArrayRef(of_components), "responsibilities: expected shape ",
                    at::IntArrayRef(of_components));
  TORCH_CHECK_VALUE(!sample_weight || sample_weight->sizes() == p.layout.batch(), "sample_weight: expected shape ", p.layout.batch());
  if (responsibilities) {
    weights = responsibilities->to(type);
    if (sample_weight) weights = weights * sample_weight->to(type).unsqueeze(-1);
    weights = weights.contiguous();
    b.weights = weights.const_data_ptr();
  } else {
    if (x.is_cpu()) {  // both in one pass
      log_prob = at::empty(p.layout.batch(), p.options(x));
      b.log_prob = log_prob.data_ptr();
    } else {
      std::tie(log_prob, normaliser) = mixture_kernel(x, weight_logits, means, scale, covariance, precision);
      b.shift = normaliser.const_data_ptr();
      b.total = static_cast<const char*>(b.shift) + static_cast<size_t>(p.args.rows) * normaliser.element_size();
    }
    if (sample_weight) b.grad = row_grad(*sample_weight, p.layout.batch(), p.is_double, p.keep);
  }
  RowSums s = run_mixture_backward(p, x, b, nullptr, true, true);
  if (!diagonal) {
    s.first.div_(p.unit);
    s.second.div_(p.unit).div_(p.unit.view({-1, 1}));
  }
  if (p.covariance == Covariance::kTied) s.second = s.second.squeeze(0);
  if (diagonal) {  // from units of the standard deviation
    const Tensor inverse = p.inverse();
    s.first.div_(inverse);
    s.second.div_(inverse).div_(inverse);
    if (p.covariance == Covariance::kSpherical) s.second = s.second.sum(1);
  }
  return {log_prob, s.counts.to(type), s.first.to(type), s.second.to(type)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> mixture_statistics(const Tensor& x, const Tensor& weight_logits, const Tensor& means,
                                                              const Tensor& scale, const OptionalTensor& responsibilities,
                                                              const OptionalTensor& sample_weight, const std::string& covariance,
                                                              const std::string& precision) {
  const bool plain =
      is_plain({x, weight_logits, means, scale}) && is_plain_or_absent(responsibilities) && is_plain_or_absent(sample_weight);
  return VF_CALL(plain, mixture_statistics, x, weight_logits, means, scale, responsibilities, sample_weight, covariance, precision);
}

}  // namespace ops
}  // namespace vae_fast

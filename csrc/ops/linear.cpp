// torch's linear layer, its products through product.h.
#include <ATen/autocast_mode.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>

#include "autograd.h"
#include "product.h"

namespace vae_fast {
namespace ops {
namespace {

struct LinearState {
  Mask mask;  // input, weight, bias
};

Tensor as_matrix(const Tensor& t) { return t.reshape({-1, t.size(-1)}); }

struct LinearFunction : torch::autograd::Function<LinearFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, TensorList inputs, const LinearState& s) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({inputs[0], inputs[1]});
    carry(ctx, s);
    at::DimVector shape(inputs[0].sizes());
    shape.back() = inputs[1].size(0);
    const OptionalTensor bias = inputs.size() > 2 ? OptionalTensor(inputs[2]) : std::nullopt;
    return linear_product(as_matrix(inputs[0]), inputs[1], bias).view(shape);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& upstream) {
    const LinearState& s = carried<LinearState>(ctx);
    const auto saved = ctx->get_saved_variables();
    const Tensor g = as_matrix(upstream[0]), x = as_matrix(saved[0]);
    // The gradient's own derivative, if it is wanted, is torch's.
    const bool plain = plain_backward(saved, upstream[0]);
    const auto product = [&](const Tensor& a, const Tensor& b) { return plain ? linear_product(a, b, std::nullopt) : at::mm(a, b.t()); };
    Tensors some;
    if (s.mask[0]) some.push_back(product(g, saved[1].t()).view_as(saved[0]));
    if (s.mask[1]) some.push_back(product(g.t(), x.t()));
    if (s.mask.size() > 2 && s.mask[2]) some.push_back(g.sum(0));
    return spread(some, s.mask, s.mask.size() + 1);
  }
};

/// The same in bfloat16, the weights' copies at hand: the products and what comes out are bfloat16, gradients of weights in the weights'
/// own dtype.
struct LinearBFloat16Function : torch::autograd::Function<LinearBFloat16Function> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, TensorList inputs, const Tensor& weight, const OptionalTensor& bias,
                        const LinearState& s) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const Tensor x = inputs[0].to(at::kBFloat16);
    ctx->save_for_backward({inputs[0], inputs[1], x, weight});
    carry(ctx, s);
    at::DimVector shape(inputs[0].sizes());
    shape.back() = weight.size(0);
    return linear_product(as_matrix(x), weight, bias).view(shape);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& upstream) {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const LinearState& s = carried<LinearState>(ctx);
    const auto saved = ctx->get_saved_variables();
    const Tensor g = as_matrix(upstream[0]).to(at::kBFloat16);
    // The gradient's own derivative, if it is wanted, is torch's, through the tensors that have one.
    const bool plain = plain_backward(saved, upstream[0]);
    const Tensor x = as_matrix(plain ? saved[2] : saved[0].to(at::kBFloat16));
    const Tensor w = plain ? saved[3] : saved[1].to(at::kBFloat16);
    const auto product = [&](const Tensor& a, const Tensor& b) { return plain ? linear_product(a, b, std::nullopt) : at::mm(a, b.t()); };
    Tensors some;
    if (s.mask[0]) some.push_back(product(g, w.t()).view_as(saved[0]).to(saved[0].scalar_type()));
    if (s.mask[1]) some.push_back(product(g.t(), x.t()).to(saved[1].scalar_type()));
    if (s.mask.size() > 2 && s.mask[2]) some.push_back(g.sum(0).to(saved[1].scalar_type()));
    return spread(some, s.mask, s.mask.size() + 3);
  }
};

/// Whether these are a linear layer's tensors as torch takes them, on the CPU, with something to compute. What is not goes to torch's own
/// function, for its words.
bool is_layer(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  return input.is_cpu() && weight.scalar_type() == at::kFloat && input.dim() > 0 && weight.dim() == 2 && input.numel() > 0 &&
         input.size(-1) == weight.size(1) &&
         (!bias || (bias->scalar_type() == at::kFloat && bias->dim() == 1 && bias->size(0) == weight.size(0)));
}

Tensors inputs_of(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  return bias ? Tensors{input, weight, *bias} : Tensors{input, weight};
}

}  // namespace

Tensor linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  const Tensors inputs = inputs_of(input, weight, bias);
  const bool ordinary = is_layer(input, weight, bias) && input.scalar_type() == at::kFloat;
  if (!ordinary || at::autocast::is_autocast_enabled(at::kCPU) || !is_plain(inputs)) return at::linear(input, weight, bias);
  return LinearFunction::apply(TensorList(inputs), LinearState{requires_grad_mask(inputs)});
}

Tensor linear_bfloat16(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Tensor& weight_copy,
                       const OptionalTensor& bias_copy) {
  const Tensors inputs = inputs_of(input, weight, bias);
  const bool ordinary = is_layer(input, weight, bias) && (input.scalar_type() == at::kFloat || input.scalar_type() == at::kBFloat16);
  if (!ordinary || !is_plain(inputs)) return at::linear(input, weight, bias);
  return LinearBFloat16Function::apply(TensorList(inputs), weight_copy, bias_copy, LinearState{requires_grad_mask(inputs)});
}

}  // namespace ops
}  // namespace vae_fast

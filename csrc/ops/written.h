// Gradients that a forward pass writes, where it has most of their work to do anyway: the backward pass multiplies them by the upstream
// one.
#pragma once

#include <vector>

#include "autograd.h"
#include "layout.h"

namespace vae_fast {
namespace ops {

/// For an upstream gradient of 1, as the kernels write them: (*batch, *event), dense, float or double.
struct Written {
  Tensors grads;
  std::vector<bool> summed;  // over samples: that can only be multiplied by one number for all of them

  void add(Tensor grad, bool is_sum = false) {
    grads.push_back(std::move(grad));
    summed.push_back(is_sum);
  }
};

/// Whether the gradient of `input` may be written before the upstream one is known: one of 16 bits would be rounded, and leave its range,
/// before a loss's scale comes.
inline bool can_be_written(const Tensor& input) {
  return input.is_cpu() && (input.scalar_type() == at::kFloat || input.scalar_type() == at::kDouble);
}

/// What was written, times the upstream gradients, (*batch). Nothing if an earlier pass over a retained graph took it, or sums over samples
/// would have to be weighed one by one: then the backward pass starts from the inputs.
std::optional<Tensors> multiplied(Written& written, const Tensor& upstream);

/// An autograd function of an Op as in OpFunction, whose State has a `Written written`, and which has
///   static Tensor forward_with_grad(TensorList inputs, State&);                      // writes what can be written
///   static Tensors finish(Tensors grads, TensorList inputs, const State&);           // of what was written, the gradients of the inputs
template <class Op>
struct WrittenFunction : torch::autograd::Function<WrittenFunction<Op>> {
  using State = typename Op::State;

  static Tensor forward(torch::autograd::AutogradContext* ctx, TensorList inputs, const State& given) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward(inputs.vec());
    State& s = carry(ctx, given);
    return is_plain(inputs) ? Op::forward_with_grad(inputs, s) : Op::forward(false, inputs, s);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& upstream) {
    State& s = carried<State>(ctx);
    const auto saved = ctx->get_saved_variables();
    const bool plain = plain_backward(saved, upstream[0]);
    std::optional<Tensors> grads;
    if (plain) grads = multiplied(s.written, upstream[0]);
    return spread(grads ? Op::finish(std::move(*grads), saved, s) : Op::backward(plain, upstream[0], saved, s), s.mask, s.mask.size() + 1);
  }
};

}  // namespace ops
}  // namespace vae_fast

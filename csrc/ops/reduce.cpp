// The sum or mean over the batch, in an order that does not depend on the number of threads.
#include "autograd.h"
#include "layout.h"

namespace vae_fast {
namespace ops {
namespace {

struct TotalFunction : torch::autograd::Function<TotalFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& t, bool mean) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->saved_data["sizes"] = t.sizes();
    ctx->saved_data["mean"] = mean;
    return total(t, mean);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& upstream) {
    const auto sizes = ctx->saved_data["sizes"].toIntVector();
    Tensor grad = upstream[0];
    if (ctx->saved_data["mean"].toBool()) grad = grad / static_cast<double>(c10::multiply_integers(sizes));
    return {grad.expand(sizes), Tensor()};
  }
};

}  // namespace

Tensor reduce(const Tensor& t, bool mean) {
  if (!is_plain(t)) return (mean ? t.mean(at::kDouble) : t.sum(at::kDouble)).to(t.scalar_type());  // as in total
  return wants_grad(t) ? TotalFunction::apply(t, mean) : total(t, mean);
}

}  // namespace ops
}  // namespace vae_fast

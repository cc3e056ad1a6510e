#include "product.h"

#include <ATen/Context.h>
#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <algorithm>

namespace vae_fast {
namespace ops {
namespace {

/// Below this many multiply-adds the call costs more than the product.
constexpr int64_t kLeastProduct = int64_t{1} << 21;

/// torch's own binding of oneDNN's product, if this torch has it with the arguments known here.
const std::optional<c10::OperatorHandle>& onednn() {
  static const std::optional<c10::OperatorHandle> op = []() -> std::optional<c10::OperatorHandle> {
    if (!at::hasMKLDNN()) return std::nullopt;
    auto found = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    return found && found->schema().arguments().size() == 6 && found->schema().returns().size() == 1 ? found : std::nullopt;
  }();
  return op;
}

/// Rows or columns dense, the other dimension a stride of its own: what both libraries read without a copy.
bool is_matrix(const Tensor& t) { return t.is_contiguous() || t.t().is_contiguous(); }

bool suits_onednn(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, int64_t longest_sum) {
  return input.is_cpu() && input.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat &&
         (!bias || bias->scalar_type() == at::kFloat) && input.size(0) * input.size(1) * weight.size(0) >= kLeastProduct &&
         input.size(1) <= longest_sum && is_matrix(input) && is_matrix(weight) && at::globalContext().userEnabledMkldnn() && onednn();
}

}  // namespace

Tensor linear_product(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, int64_t longest_sum) {
  if (suits_onednn(input, weight, bias, longest_sum)) {
    torch::jit::Stack stack;
    torch::jit::push(stack, input, weight, bias, std::string("none"), c10::List<std::optional<at::Scalar>>(), std::string());
    onednn()->callBoxed(stack);
    return std::move(stack.back()).toTensor();
  }
  return bias ? at::addmm(*bias, input, weight.t()) : at::mm(input, weight.t());
}

void add_outer_product(Tensor& sum, const Tensor& left, const Tensor& right) {
  const bool same = sum.scalar_type() == left.scalar_type();
  const int64_t step = left.is_cpu() ? kLongestSum : std::max<int64_t>(1, left.size(0));
  for (int64_t begin = 0; begin < left.size(0); begin += step) {
    const int64_t n = std::min(step, left.size(0) - begin);
    const Tensor a = left.narrow(0, begin, n).t(), b = right.narrow(0, begin, n);
    if (same && !suits_onednn(a, b.t(), std::nullopt, kLongestSum)) {
      sum.addmm_(a, b);
    } else {
      sum.add_(linear_product(a, b.t(), std::nullopt));
    }
  }
}

}  // namespace ops
}  // namespace vae_fast

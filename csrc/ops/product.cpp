#include "product.h"

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/List.h>
#include <ATen/core/stack.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdio>

#include "product_choice.h"

namespace vae_fast {
namespace ops {
namespace {

/// Below this many multiply-adds the call costs more than the product.
constexpr int64_t kLeastProduct = int64_t{1} << 21;
/// What is tried out is a part of this many at most: milliseconds.
constexpr int64_t kMostProbe = int64_t{1} << 29;

/// torch's own binding of oneDNN's product, if this torch has it with the arguments known here.
const std::optional<c10::OperatorHandle>& onednn() {
  static const std::optional<c10::OperatorHandle> op = []() -> std::optional<c10::OperatorHandle> {
    if (!at::hasMKLDNN()) return std::nullopt;
    auto found = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    return found && found->schema().arguments().size() == 6 && found->schema().returns().size() == 1 ? found : std::nullopt;
  }();
  return op;
}

/// Whether oneDNN has bfloat16 products for this processor: its own answer.
bool onednn_has_bfloat16() {
  static const bool has = [] {
    const auto op = c10::Dispatcher::singleton().findSchema({"mkldnn::_is_mkldnn_bf16_supported", ""});
    return op && op->schema().arguments().empty() && op->typed<bool()>().call();
  }();
  return has;
}

/// Rows or columns dense, the other dimension a stride of its own: what both libraries read without a copy.
bool is_matrix(const Tensor& t) { return t.is_contiguous() || t.t().is_contiguous(); }

bool suits_onednn(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, int64_t longest_sum) {
  const auto type = input.scalar_type();
  const bool kind = type == at::kFloat || (type == at::kBFloat16 && onednn_has_bfloat16());
  return input.is_cpu() && kind && weight.scalar_type() == type && (!bias || bias->scalar_type() == type) &&
         input.size(0) * input.size(1) * weight.size(0) >= kLeastProduct && input.size(1) <= longest_sum && is_matrix(input) &&
         is_matrix(weight) && at::globalContext().userEnabledMkldnn() && onednn();
}

Tensor by_onednn(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  torch::jit::Stack stack;
  // torch's binding reads a bias as if it were dense, whatever its stride
  const OptionalTensor dense = bias ? OptionalTensor(bias->contiguous()) : std::nullopt;
  torch::jit::push(stack, input, weight, dense, std::string("none"), c10::List<std::optional<at::Scalar>>(), std::string());
  onednn()->callBoxed(stack);
  return std::move(stack.back()).toTensor();
}

Tensor by_torch(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& out) {
  const Tensor w = weight.t();
  if (!out) return bias ? at::addmm(*bias, input, w) : at::mm(input, w);
  Tensor result = *out;
  return bias ? at::addmm_out(result, *bias, input, w) : at::mm_out(result, input, w);
}

/// A size to within an eighth: sizes between share a choice, so that a run over batches of every size measures a few of them.
int64_t rounded(int64_t size) {
  int64_t step = 1;
  while (size >= 16 * step) step *= 2;
  return (size + step - 1) / step * step;
}

/// What a choice holds for, e.g. "float32 linear+bias 104x784 500 by rows,rows, 2 threads".
std::string name_of(const char* kind, const Tensor& a, const Tensor& b, int64_t m, int64_t k, int64_t n) {
  char text[160];
  const auto lie = [](const Tensor& t) { return t.is_contiguous() ? "rows" : "columns"; };
  std::snprintf(text, sizeof text, "%s %s %lldx%lldx%lld %s,%s %d threads", a.scalar_type() == at::kFloat ? "float32" : "bfloat16", kind,
                static_cast<long long>(rounded(m)), static_cast<long long>(rounded(k)), static_cast<long long>(rounded(n)), lie(a), lie(b),
                at::get_num_threads());
  return text;
}

/// The first `rows` of a matrix, lying as the whole does.
Tensor part(const Tensor& t, int64_t rows, int64_t columns) {
  if (rows == t.size(0) && columns == t.size(1)) return t;
  const Tensor some = t.narrow(0, 0, rows).narrow(1, 0, columns);
  return t.is_contiguous() ? some.contiguous() : some.t().contiguous().t();
}

/// Sizes of what is tried out: the largest halved until it is small.
void shrink(int64_t& m, int64_t& k, int64_t& n) {
  while (m * k * n > kMostProbe) {
    int64_t& largest = m >= k && m >= n ? m : (k >= n ? k : n);
    largest = (largest + 1) / 2;
  }
}

Library library_for_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  int64_t m = input.size(0), k = input.size(1), n = weight.size(0);
  const std::string name = name_of(bias ? "linear+bias" : "linear", input, weight, m, k, n);
  return choose_library(name, [&, a = Tensor(), b = Tensor(), c = bias](Library library) mutable {
    if (!a.defined()) {
      shrink(m, k, n);
      a = part(input, m, k), b = part(weight, n, k);
      if (c) c = c->narrow(0, 0, n);
    }
    library == Library::kOneDnn ? by_onednn(a, b, c) : by_torch(a, b, c, std::nullopt);
  });
}

void add_by_torch(Tensor& sum, const Tensor& left, const Tensor& right) {
  if (!sum.defined()) {
    sum = at::mm(left.t(), right);
  } else if (sum.scalar_type() == left.scalar_type()) {
    sum.addmm_(left.t(), right);
  } else {
    sum.add_(at::mm(left.t(), right));
  }
}

void add_by_onednn(Tensor& sum, const Tensor& left, const Tensor& right) {
  for (int64_t begin = 0; begin < left.size(0); begin += kLongestSum) {
    const int64_t n = std::min(kLongestSum, left.size(0) - begin);
    const Tensor product = by_onednn(left.narrow(0, begin, n).t(), right.narrow(0, begin, n).t(), std::nullopt);
    if (sum.defined()) {
      sum.add_(product);
    } else {
      sum = product;
    }
  }
}

Library library_for_sum(const Tensor& left, const Tensor& right) {
  int64_t m = left.size(0), n = left.size(1), k = right.size(1);
  const std::string name = name_of("sum", left, right, n, m, k);
  return choose_library(name, [&, a = Tensor(), b = Tensor(), sum = Tensor()](Library library) mutable {
    if (!a.defined()) {
      shrink(m, n, k);
      a = part(left, m, n), b = part(right, m, k);
      sum = at::zeros({n, k}, left.options());
    }
    library == Library::kOneDnn ? add_by_onednn(sum, a, b) : add_by_torch(sum, a, b);
  });
}

}  // namespace

Tensor linear_product(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, int64_t longest_sum,
                      const OptionalTensor& out) {
  if (!suits_onednn(input, weight, bias, longest_sum) || library_for_linear(input, weight, bias) == Library::kBlas) {
    return by_torch(input, weight, bias, out);
  }
  const Tensor product = by_onednn(input, weight, bias);
  return out ? out->copy_(product) : product;
}

void add_outer_product(Tensor& sum, const Tensor& left, const Tensor& right) {
  const int64_t piece = std::min(kLongestSum, left.size(0));
  const bool both = left.scalar_type() == at::kFloat && piece > 0 && left.is_contiguous() && right.is_contiguous() &&
                    suits_onednn(left.narrow(0, 0, piece).t(), right.narrow(0, 0, piece).t(), std::nullopt, kLongestSum);
  if (both && library_for_sum(left, right) == Library::kOneDnn) {
    add_by_onednn(sum, left, right);
  } else {
    add_by_torch(sum, left, right);
  }
}

}  // namespace ops
}  // namespace vae_fast

#include "written.h"

#include <algorithm>
#include <mutex>
#include <utility>

namespace vae_fast {
namespace ops {

namespace {
struct Spare {
  std::mutex mutex;
  Tensor tensor;
};
Spare& spare() {
  static Spare* kept = new Spare();  // never destroyed: torch may end first
  return *kept;
}

/// The sum over samples of g, (*batch, *event), times the upstream gradients: (1, ..., *event), in double.
Tensor sum_over_samples(const Tensor& g, const Tensor& upstream, const RowGrad& by, bool uniform) {
  const size_t batch = static_cast<size_t>(upstream.dim());
  at::DimVector shape(g.sizes());
  std::fill_n(shape.begin(), batch, int64_t{1});
  const double first = upstream.flatten()[0].item<double>();
  if (uniform && first == 0.0) return at::zeros(shape, g.options().dtype(at::kDouble));
  Tensor out = at::empty_strided(shape, g.strides(), g.options().dtype(at::kDouble));  // as g lies
  SumArgs a;
  a.outer = 1;
  a.k = upstream.numel();
  a.inner = g.numel() / a.k;
  a.is_double = g.scalar_type() == at::kDouble;
  a.a = g.const_data_ptr();
  a.weight = uniform ? nullptr : by.data;
  a.scale = uniform ? first : 1.0;
  a.out_is_double = true;
  a.out = out.data_ptr();
  cpu::sum(a);
  return out;
}
}  // namespace

Tensor buffer_to_sum(at::IntArrayRef shape, const at::TensorOptions& options) {
  Tensor found;
  {
    const std::lock_guard<std::mutex> lock(spare().mutex);
    found = std::move(spare().tensor);
    spare().tensor = Tensor();
  }
  const bool fits = found.defined() && found.sizes() == shape && found.dtype() == options.dtype();
  return fits ? found : at::empty(shape, options);
}

std::optional<Tensors> multiplied(Written& written, const Tensor& upstream) {
  if (written.grads.empty()) return std::nullopt;
  Tensors grads = std::move(written.grads);
  written.grads.clear();
  std::vector<Tensor> keep;
  const bool is_double = upstream.scalar_type() == at::kDouble;
  const int64_t rows = upstream.numel();
  const RowGrad by = row_grad(upstream, upstream.sizes(), is_double, keep);
  const auto any = [&](Written::Form form) { return std::find(written.forms.begin(), written.forms.end(), form) != written.forms.end(); };
  const bool uniform = (any(Written::Form::kSum) || any(Written::Form::kToSum)) && cpu::is_uniform(by, rows, is_double);
  if (any(Written::Form::kSum) && !uniform) return std::nullopt;
  for (size_t i = 0; i < grads.size(); ++i) {
    Tensor& g = grads[i];
    if (written.forms[i] == Written::Form::kToSum) {
      Tensor sum = sum_over_samples(g, upstream, by, uniform);
      const std::lock_guard<std::mutex> lock(spare().mutex);
      spare().tensor = std::exchange(g, std::move(sum));
    } else if (written.forms[i] == Written::Form::kSum) {
      const double f = rows > 0 ? upstream.flatten()[0].item<double>() : 1.0;
      f == 0.0 ? g.zero_() : g.mul_(f);
    } else {
      cpu::scale_rows(g.data_ptr(), dtype_of(g), rows, rows > 0 ? g.numel() / rows : 0, by);
    }
  }
  return grads;
}

}  // namespace ops
}  // namespace vae_fast

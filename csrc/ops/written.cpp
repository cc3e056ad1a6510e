#include "written.h"

#include <algorithm>

namespace vae_fast {
namespace ops {

std::optional<Tensors> multiplied(Written& written, const Tensor& upstream) {
  if (written.grads.empty()) return std::nullopt;
  Tensors grads = std::move(written.grads);
  written.grads.clear();
  std::vector<Tensor> keep;
  const bool is_double = upstream.scalar_type() == at::kDouble;
  const int64_t rows = upstream.numel();
  const RowGrad by = row_grad(upstream, upstream.sizes(), is_double, keep);
  const bool sums = std::any_of(written.summed.begin(), written.summed.end(), [](bool b) { return b; });
  if (sums && !cpu::is_uniform(by, rows, is_double)) return std::nullopt;
  for (size_t i = 0; i < grads.size(); ++i) {
    Tensor& g = grads[i];
    if (written.summed[i]) {
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

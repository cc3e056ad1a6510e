#include "ordinary_head.h"

#include <torch/csrc/autograd/python_variable.h>

namespace vae_fast {
namespace ops {

bool ordinary_head(py::handle x, py::handle recon, py::handle mu, py::handle logvar, int64_t event_dim, int64_t latent_dim) {
  const at::Tensor* t[4];
  py::handle given[4] = {x, recon, mu, logvar};
  for (int i = 0; i < 4; ++i) {
    if (!THPVariable_Check(given[i].ptr())) return false;
    t[i] = &THPVariable_Unpack(given[i].ptr());
    const auto type = t[i]->scalar_type();
    const bool dense = t[i]->layout() == at::kStrided && t[i]->device() == t[0]->device();
    const bool floats = type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble;
    if (!dense || !(floats || (i == 0 && (type == at::kByte || type == at::kBool)))) return false;
  }
  const auto data = t[1]->sizes(), latent = t[2]->sizes();
  if (t[0]->sizes() != data || t[3]->sizes() != latent || event_dim < 0 || latent_dim < 0) return false;
  const int64_t batch = static_cast<int64_t>(data.size()) - event_dim;
  if (batch < 0 || static_cast<int64_t>(latent.size()) - latent_dim != batch) return false;
  return data.slice(0, static_cast<size_t>(batch)) == latent.slice(0, static_cast<size_t>(batch));
}

}  // namespace ops
}  // namespace vae_fast

// The short way into an ELBO from Python.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace vae_fast {
namespace ops {

/// Whether the tensors of an ELBO are of the one kind that needs no further look: dense floats (data may be bytes) on one device, shapes
/// equal where they could broadcast. Python's own checks, which find the words when something is wrong, cost five times as much.
bool ordinary_head(py::handle x, py::handle recon, py::handle mu, py::handle logvar, int64_t event_dim, int64_t latent_dim);

}  // namespace ops
}  // namespace vae_fast

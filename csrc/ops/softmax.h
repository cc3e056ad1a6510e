// Softmaxes over classes, for the ops that have rows of logits.
#pragma once

#include <ATen/core/Tensor.h>

#include "../kernels.h"

namespace vae_fast {
namespace ops {

/// On the device of `like`; on a GPU the functions take the formula of vae_fast.reference.
void launch_softmax(const at::Tensor& like, const SoftmaxArgs& args);

}  // namespace ops
}  // namespace vae_fast

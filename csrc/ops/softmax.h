// Softmaxes over classes, for the ops that have rows of logits.
#pragma once

#include <ATen/core/Tensor.h>

#include "../kernels.h"

namespace vae_fast {
namespace ops {

/// On the device of `like`, with scratch where that needs some.
void launch_softmax(const at::Tensor& like, const SoftmaxArgs& args);

}  // namespace ops
}  // namespace vae_fast

// Runs kernels on the device their tensors are on: the right device, the current stream, errors reported.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "../kernels.h"

#if defined(VF_WITH_CUDA)
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace vae_fast {
namespace ops {

#if defined(VF_WITH_CUDA)
#define VF_LAUNCH(tensor, name, args)                                      \
  do {                                                                     \
    if ((tensor).is_cuda()) {                                              \
      const c10::cuda::CUDAGuard guard((tensor).device());                 \
      C10_CUDA_CHECK(cuda::name(args, c10::cuda::getCurrentCUDAStream())); \
    } else {                                                               \
      cpu::name(args);                                                     \
    }                                                                      \
  } while (false)
#else
#define VF_LAUNCH(tensor, name, args)                                                        \
  do {                                                                                       \
    TORCH_CHECK((tensor).is_cpu(), "tensor on ", (tensor).device(),                          \
                ": this build of vae_fast has no CUDA kernels (see vae_fast.build_info())"); \
    cpu::name(args);                                                                         \
  } while (false)
#endif

/// A counter on the device that is 0 for the next kernel of the current stream, which leaves it 0; null on the CPU.
uint32_t* zero_counter(const at::Tensor& like, std::vector<at::Tensor>& keep);
/// row_terms with a loss needs scratch on CUDA: partial sums and a counter that is zero.
void launch_row_terms(const at::Tensor& like, RowTermsArgs& args);
/// grad *= upstream, unless upstream is 1, or, with `only_exactly`, is no power of two; on CUDA that is decided on the device.
void scale_unless_one(at::Tensor& grad, const at::Tensor& upstream, bool only_exactly);
/// (seed, offset) from torch's generator for the device; under CUDA-graph capture the graph's own, fresh at each replay.
PhiloxSeed draw_seed(const at::Tensor& like, const std::optional<at::Generator>& generator);

}  // namespace ops
}  // namespace vae_fast

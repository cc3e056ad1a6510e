// What the host tells the sampling kernels beside the arguments, and the kernels there are.
#pragma once

#include "groups.cuh"
#include "memory.cuh"
#include "terms.cuh"

namespace vae_fast {
namespace cuda {

constexpr int kQuad = 4;  // normals of a Philox block

template <typename C>
struct SamplePlan {
  Groups groups;
  math::TermParams<C> params;
  int32_t kl_inputs = 2;
};

/// Start the kernels compiled for T; sample_*.cu instantiate them.
template <typename T>
cudaError_t launch_sample(const SampleArgs& args, const SamplePlan<Compute<T>>& plan, unsigned grid, cudaStream_t stream);
template <typename T>
cudaError_t launch_sample_backward(const SampleBackwardArgs& args, const SamplePlan<Compute<T>>& plan, unsigned grid, cudaStream_t stream);

}  // namespace cuda
}  // namespace vae_fast

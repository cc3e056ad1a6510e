#include "mixture_gradient.cuh"

namespace vae_fast {
namespace cuda {
template cudaError_t launch_mixture_gradient<float>(const MixtureArgs&, const Stream&, const GradientRows&, int32_t, cudaStream_t);
}  // namespace cuda
}  // namespace vae_fast

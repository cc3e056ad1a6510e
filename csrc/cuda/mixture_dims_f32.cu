#include "mixture_dims_gradient.cuh"
#include "mixture_dims_sums.cuh"

namespace vae_fast {
namespace cuda {
template cudaError_t launch_mixture_dims<float>(const MixtureForwardArgs&, cudaStream_t);
template cudaError_t launch_mixture_dims_sums<float>(const MixtureBackwardArgs&, const SumsShape&, const PieceSums&, cudaStream_t);
template cudaError_t launch_mixture_dims_gradient<float>(const MixtureBackwardArgs&, const GradientRows&, cudaStream_t);
template cudaError_t launch_mixture_row_logits<float>(const MixtureBackwardArgs&, cudaStream_t);
}  // namespace cuda
}  // namespace vae_fast

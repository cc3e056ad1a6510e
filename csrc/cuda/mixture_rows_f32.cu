#include "mixture_rows.cuh"

namespace vae_fast {
namespace cuda {
template cudaError_t launch_mixture<float>(const MixtureForwardArgs&, cudaStream_t);
template cudaError_t launch_mixture_weights<float>(const MixtureBackwardArgs&, int64_t, int64_t, void*, cudaStream_t);
}  // namespace cuda
}  // namespace vae_fast

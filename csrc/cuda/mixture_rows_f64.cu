#include "mixture_rows.cuh"

namespace vae_fast {
namespace cuda {
template cudaError_t launch_mixture<double>(const MixtureForwardArgs&, cudaStream_t);
template cudaError_t launch_mixture_weights<double>(const MixtureBackwardArgs&, int64_t, int64_t, void*, cudaStream_t);
}  // namespace cuda
}  // namespace vae_fast

#include "mixture_sums.cuh"

namespace vae_fast {
namespace cuda {
template cudaError_t launch_mixture_moments<float>(const MixtureArgs&, const SumsShape&, const PieceSums&, cudaStream_t);
template cudaError_t launch_mixture_products<float>(const MixtureArgs&, const SumsShape&, const PieceSums&, cudaStream_t);
}  // namespace cuda
}  // namespace vae_fast

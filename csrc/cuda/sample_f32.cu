#include "sample.cuh"

namespace vae_fast {
namespace cuda {
VF_INSTANTIATE_SAMPLE(float)
}  // namespace cuda
}  // namespace vae_fast

#include "sample.cuh"

namespace vae_fast {
namespace cuda {
VF_INSTANTIATE_SAMPLE(BFloat16)
VF_INSTANTIATE_SAMPLE(Half)
}  // namespace cuda
}  // namespace vae_fast

#include "sample.cuh"

namespace vae_fast {
namespace cuda {
VF_INSTANTIATE_SAMPLE(Any<double>)
}  // namespace cuda
}  // namespace vae_fast

#include "row_terms.cuh"

namespace vae_fast {
namespace cuda {
VF_INSTANTIATE_ROW_TERMS(float, float)
VF_INSTANTIATE_ROW_TERMS(float, Byte)
}  // namespace cuda
}  // namespace vae_fast

#include "row_terms.cuh"

namespace vae_fast {
namespace cuda {
VF_INSTANTIATE_ROW_TERMS(BFloat16, BFloat16)
VF_INSTANTIATE_ROW_TERMS(BFloat16, float)
VF_INSTANTIATE_ROW_TERMS(BFloat16, Byte)
}  // namespace cuda
}  // namespace vae_fast

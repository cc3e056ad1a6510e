#include "row_terms.cuh"

namespace vae_fast {
namespace cuda {
VF_INSTANTIATE_ROW_TERMS(Half, Half)
VF_INSTANTIATE_ROW_TERMS(Half, float)
VF_INSTANTIATE_ROW_TERMS(Half, Byte)
}  // namespace cuda
}  // namespace vae_fast

#include "row_terms.cuh"

namespace vae_fast {
namespace cuda {
VF_INSTANTIATE_ROW_TERMS(Half)
}  // namespace cuda
}  // namespace vae_fast

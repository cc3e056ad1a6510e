#include "row_terms.cuh"

namespace vae_fast {
namespace cuda {
VF_INSTANTIATE_ROW_TERMS(double, double)
VF_INSTANTIATE_ROW_TERMS(double, Byte)
}  // namespace cuda
}  // namespace vae_fast

#include "bernoulli.h"

namespace vae_fast {
namespace cuda {
VF_INSTANTIATE_ROW_TERMS(BFloat16)
}  // namespace cuda
}  // namespace vae_fast

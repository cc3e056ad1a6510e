#include "bernoulli.h"

namespace vae_fast {
namespace cuda {
VF_INSTANTIATE_ROW_TERMS(float)
}  // namespace cuda
}  // namespace vae_fast

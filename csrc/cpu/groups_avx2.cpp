// The terms over groups of parameters for x86-64 processors with AVX2 and FMA (Haswell, Zen and later): a file of their own, which a new
// one recompiles.
#if defined(__x86_64__)
#include "target_avx2.h"

#include "groups.h"
#include "softmax.h"

VF_INSTANTIATE_GROUPS
VF_INSTANTIATE_SOFTMAX
VF_TARGET_END
#endif

// The terms of row sums for x86-64 processors with AVX2 and FMA (Haswell, Zen and later): a file of their own, which a new term recompiles.
#if defined(__x86_64__)
#include "target_avx2.h"

#include "row_terms.h"

VF_INSTANTIATE_TERMS
VF_TARGET_END
#endif

// The terms of row sums for x86-64 processors with AVX-512 (Skylake-X, Zen 4 and later): a file of their own, which a new term recompiles.
#if defined(__x86_64__)
#include "target_avx512.h"

#include "row_terms.h"

VF_INSTANTIATE_TERMS
VF_TARGET_END
#endif

// The CPU kernels for x86-64 processors with AVX-512 (Skylake-X, Zen 4 and later), but for the terms of row sums.
#if defined(__x86_64__)
#include "target_avx512.h"

#include "isa.h"

VF_DEFINE_TABLE(avx512)
VF_TARGET_END
#endif

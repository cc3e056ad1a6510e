// The CPU kernels for x86-64 processors with AVX2 and FMA (Haswell, Zen and later), but for the terms of row sums.
#if defined(__x86_64__)
#include "target_avx2.h"

#include "isa.h"

VF_DEFINE_TABLE(avx2)
VF_TARGET_END
#endif

// The CPU kernels for x86-64 processors with AVX-512 (Skylake-X, Zen 4 and later).
#if defined(__x86_64__)
// Library headers come before the target pragma: their inline functions must not be compiled for it.
#include <immintrin.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#define VF_ISA avx512
#define VF_FMA
#define VF_VECTOR_BYTES 64
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,prefer-vector-width=512"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,prefer-vector-width=512")
#endif

#include "isa.h"

VF_DEFINE_TABLE(avx512)

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

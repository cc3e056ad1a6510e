// The CPU kernels for x86-64 processors with AVX2 and FMA (Haswell, Zen and later).
#if defined(__x86_64__)
// Library headers come before the target pragma: their inline functions must not be compiled for it.
#include <immintrin.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#define VF_ISA avx2
#define VF_FMA
#define VF_VECTOR_BYTES 32
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#include "isa.h"

VF_DEFINE_TABLE(avx2)

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

// Included first by the files of x86-64 processors with AVX2 and FMA (Haswell, Zen and later): all that follows is compiled for them.
// Library headers come before the target pragma: their inline functions must not be.
#include <immintrin.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#define VF_ISA avx2
#define VF_FMA
#define VF_VECTOR_BYTES 32
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#define VF_TARGET_END _Pragma("clang attribute pop")
#else
#pragma GCC target("avx2,fma")
#define VF_TARGET_END
#endif

// Ground rules of csrc/math: scalar, inline, branch-free, for host and device, no torch, no loops.
//
// The CPU kernels compile these headers several times, once per instruction set. Everything therefore lives in a namespace named
// after the instruction set (VF_ISA), or the linker would keep one copy of an inline function and run AVX-512 code on a machine without it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#ifndef VF_ISA
#define VF_ISA generic
#endif

#if defined(__CUDACC__)
#define VF_INLINE __host__ __device__ __forceinline__
#else
#define VF_INLINE inline __attribute__((always_inline))
#endif

#define VF_MATH_BEGIN  \
  namespace vae_fast { \
  namespace VF_ISA {   \
  namespace math {
#define VF_MATH_END \
  }                 \
  }                 \
  }

VF_MATH_BEGIN

/// The bits of `from` read as another type of the same size.
template <typename To, typename From>
VF_INLINE To bits_to(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

/// a * b + c, fused where the instruction set fuses it.
VF_INLINE float fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return ::fmaf(a, b, c);
#elif defined(VF_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

VF_INLINE double fma(double a, double b, double c) { return a * b + c; }

/// Arithmetic that no compiler contracts or splits: what must be the same bits on every machine is built from these four. The host is
/// compiled with -ffp-contract=off; on the device the _rn intrinsics are never fused.
VF_INLINE float fma_rn(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#elif defined(VF_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return ::fmaf(a, b, c);
#endif
}
VF_INLINE double fma_rn(double a, double b, double c) { return ::fma(a, b, c); }
VF_INLINE float mul_rn(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
VF_INLINE float add_rn(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}
VF_INLINE float sqrt_rn(float a) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(a);
#else
  return ::sqrtf(a);
#endif
}

/// The largest finite value.
template <typename T>
VF_INLINE constexpr T largest() {
  return sizeof(T) == 8 ? static_cast<T>(1.7976931348623157e308) : static_cast<T>(3.402823466e38f);
}

template <typename T>
VF_INLINE T infinity() {
#if defined(__CUDA_ARCH__)
  return static_cast<T>(__int_as_float(0x7f800000));
#else
  return std::numeric_limits<T>::infinity();
#endif
}

VF_MATH_END

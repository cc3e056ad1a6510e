// exp, log, log1p and their kin. In float on the host they are polynomials that the compiler vectorises (the coefficients come from
// tools/fit_polynomials.py); in double, and where the device has its own accurate function, they are the library's.
#pragma once

#include "portable.h"

VF_MATH_BEGIN

VF_INLINE double exp(double x) { return ::exp(x); }
VF_INLINE double log(double x) { return ::log(x); }
VF_INLINE double sqrt(double x) { return ::sqrt(x); }
VF_INLINE float sqrt(float x) { return ::sqrtf(x); }
VF_INLINE double abs(double x) { return ::fabs(x); }
VF_INLINE float abs(float x) { return ::fabsf(x); }

/// t held between -most and most; NaN stays NaN.
template <typename T>
VF_INLINE T held_within(T t, T most) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == 4) {  // two instructions, where comparisons and selections are four
    float r;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(t), "f"(most));
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(r), "f"(-most));
    return r;
  }
#endif
  const T below = t > most ? most : t;
  return below < -most ? -most : below;
}

/// 2^k for k in [-126, 127].
VF_INLINE float exp2_int(int32_t k) { return bits_to<float>((static_cast<uint32_t>(k) + 127u) << 23); }

/// e^x = 2^k p with p in [0.7, 1.42]; k is meaningless where |x| > 104.
VF_INLINE float exp_parts(float x, int32_t& k) {
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, found in the low bits
  const float n = fma(x, 1.44269504f, shift);
  const float kf = n - shift;
  float r = fma(kf, -0.693359375f, x);  // log 2 in two parts, the first exact in a product with k
  r = fma(kf, 2.12194440e-4f, r);
  float p = fma(0.00139261817f, r, 0.008363178f);
  p = fma(p, r, 0.0416665561f);
  p = fma(p, r, 0.166665763f);
  p = fma(p, r, 0.5f);
  k = static_cast<int32_t>(bits_to<uint32_t>(n) - bits_to<uint32_t>(shift));
  return fma(p * r, r, r) + 1.0f;
}

/// e^x to 2 ulp; 0 where it is no longer a normal number (x < -87.3), infinity above 88.7, NaN for NaN.
VF_INLINE float exp(float x) {
#if defined(__CUDA_ARCH__)
  return ::expf(x);
#else
  int32_t k;
  const float p = exp_parts(x > 89.0f ? 89.0f : x, k);
  const float e = (p + p) * exp2_int(k - 1);  // k reaches 128, and 2^128 is no float
  return x < -87.0f ? 0.0f : e;
#endif
}

/// e^-|a| to 2 ulp, where it is a normal number, and 0 below.
VF_INLINE float exp_minus_abs(float a) {
#if defined(__CUDA_ARCH__)
  return ::expf(-::fabsf(a));
#else
  int32_t k;
  const float x = -abs(a), p = exp_parts(x, k);
  return x < -87.0f ? 0.0f : p * exp2_int(k);
#endif
}
VF_INLINE double exp_minus_abs(double a) { return ::exp(-::fabs(a)); }

/// The same from `power`, which is 2^t: what rounding loses of t = -|a| / log 2 comes back as a factor of 1 + rest, with log 2 in two
/// parts. An ulp at most is added to the error of the power.
template <typename Power>
VF_INLINE float exp_minus_abs_by(const Power& power, float a) {
  const float t = mul_rn(abs(a), -1.44269504f), p = power(t);
  const float rest = fma_rn(t, 1.90465421e-9f, fma_rn(t, -0.693147182f, -abs(a)));
  return fma_rn(p, rest < 1.0f ? rest : 1.0f, p);  // of an infinity the rest is NaN, and the power 0
}

#if defined(__CUDA_ARCH__)
/// 2^t to 2 ulp in one instruction, 0 where it is no longer a normal number.
VF_INLINE float exp2_instruction(float t) {
  float p;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(p) : "f"(t));
  return p;
}
#endif

/// e^-|a| to 3 ulp, where nothing is subtracted from it: two instructions less on the device, and registers more, which the longer terms
/// lack.
VF_INLINE float exp_minus_abs_quick(float a) {
#if defined(__CUDA_ARCH__)
  return exp_minus_abs_by(exp2_instruction, a);
#else
  return exp_minus_abs(a);
#endif
}
VF_INLINE double exp_minus_abs_quick(double a) { return ::exp(-::fabs(a)); }

/// e^x, x <= 0, for a sum whose largest term is 1: where rounding x / log 2 makes the error |x| / 2 ulp, the term is as small as e^x.
VF_INLINE float exp_of_sum(float x) {
#if defined(__CUDA_ARCH__)
  return exp2_instruction(x * 1.44269504f);
#else
  return exp(x);
#endif
}
VF_INLINE double exp_of_sum(double x) { return ::exp(x); }

/// 2^t for t < 127 to 2 ulp, 0 where it is no longer a normal number (t < -126), NaN for NaN: half of the arithmetic of e^x, for sums whose
/// terms have their exponents in base 2 from the start.
VF_INLINE float exp2_below(float t) {
#if defined(__CUDA_ARCH__)
  return exp2_instruction(t);
#else
  const float shift = 12582912.0f;  // as in exp_parts
  const float n = t + shift, r = t - (n - shift);
  float p = fma(0.00132646062f, r, 0.00967159774f);
  p = fma(p, r, 0.055507347f);
  p = fma(p, r, 0.240222409f);
  p = fma(p, r, 0.693147004f);
  p = fma(p, r, 1.0f);
  const int32_t k = static_cast<int32_t>(bits_to<uint32_t>(n) - bits_to<uint32_t>(shift));
  return t < -126.0f ? 0.0f : p * exp2_int(k);
#endif
}
VF_INLINE double exp2_below(double t) { return ::exp2(t); }

/// e^u - 1 - u, given e^u: relative accuracy kept where it is tiny (a posterior near its prior).
VF_INLINE float exp_minus_1_minus(float u, float exp_u) {
  float p = fma(2.49224358e-05f, u, 0.000199621762f);
  p = fma(p, u, 0.00138887379f);
  p = fma(p, u, 0.00833318196f);
  p = fma(p, u, 0.0416666679f);
  p = fma(p, u, 0.166666672f);
  p = fma(p, u, 0.5f);
  return abs(u) < 0.5f ? p * u * u : exp_u - 1.0f - u;
}
VF_INLINE double exp_minus_1_minus(double u, double exp_u) {
  const double series = u * u * (0.5 + u * (1.0 / 6 + u * (1.0 / 24 + u * (1.0 / 120 + u * (1.0 / 720)))));
  const double small = abs(u) < 1e-3 ? series : ::expm1(u) - u;
  return abs(u) < 0.5 ? small : exp_u - 1.0 - u;
}

/// How a polynomial is evaluated: fused where the machine can, or fused everywhere, so that every machine gets the same bits (a call of the
/// C library where the instruction is missing, which is x86 before 2013).
struct Fused {
  VF_INLINE static float madd(float a, float b, float c) { return fma(a, b, c); }
#if defined(VF_VECTOR_BYTES) && VF_VECTOR_BYTES < 64
  static constexpr bool kTwoChains = true;
#else
  static constexpr bool kTwoChains = false;
#endif
};
struct Portable {
  VF_INLINE static float madd(float a, float b, float c) { return fma_rn(a, b, c); }
  static constexpr bool kTwoChains = false;
};

/// c8 x^8 + ... + c0, given xx = x^2: by Horner's rule, or odd and even powers side by side, where the chain of dependent operations, which
/// bounds the loops of terms, is half as long for one move more. Measured with AVX2; AVX-512, not measured, is as it was.
template <class Arithmetic>
VF_INLINE float polynomial(float x, float xx, float c8, float c7, float c6, float c5, float c4, float c3, float c2, float c1, float c0) {
  if constexpr (Arithmetic::kTwoChains) {
    float even = Arithmetic::madd(c8, xx, c6), odd = Arithmetic::madd(c7, xx, c5);
    even = Arithmetic::madd(even, xx, c4), odd = Arithmetic::madd(odd, xx, c3);
    even = Arithmetic::madd(even, xx, c2), odd = Arithmetic::madd(odd, xx, c1);
    even = Arithmetic::madd(even, xx, c0);
    return Arithmetic::madd(odd, x, even);
  } else {
    float p = Arithmetic::madd(c8, x, c7);
    p = Arithmetic::madd(p, x, c6);
    p = Arithmetic::madd(p, x, c5);
    p = Arithmetic::madd(p, x, c4);
    p = Arithmetic::madd(p, x, c3);
    p = Arithmetic::madd(p, x, c2);
    p = Arithmetic::madd(p, x, c1);
    return Arithmetic::madd(p, x, c0);
  }
}

/// log(1 + f) - f for 1 + f in [sqrt(1/2), sqrt(2)), relative accuracy kept where f is tiny.
template <class Arithmetic>
VF_INLINE float log1p_minus(float f) {
  const float ff = mul_rn(f, f);
  const float p = polynomial<Arithmetic>(f, ff, 0.0696975365f, -0.114791878f, 0.116857961f, -0.124257766f, 0.142490327f, -0.166677982f,
                                         0.20000717f, -0.24999997f, 0.333333313f);
  return Arithmetic::madd(mul_rn(ff, f), p, mul_rn(-0.5f, ff));
}

/// x = (1 + f) 2^e for positive normal x, with 1 + f in [sqrt(1/2), sqrt(2)).
VF_INLINE void log_parts(float x, float& f, float& e) {
  const uint32_t i = bits_to<uint32_t>(x) - 0x3f3504f3u;  // sqrt(1/2)
  e = static_cast<float>(static_cast<int32_t>(i) >> 23);
  f = add_rn(bits_to<float>((i & 0x007fffffu) + 0x3f3504f3u), -1.0f);
}

/// log(x) for positive normal x, to 2 ulp.
template <class Arithmetic>
VF_INLINE float log_normal(float x) {
  float f, e;
  log_parts(x, f, e);
  // e log 2 + f + (log(1 + f) - f), smallest first; log 2 in two parts, the first exact in a product with e
  const float tail = Arithmetic::madd(e, -2.12194440e-4f, log1p_minus<Arithmetic>(f));
  return Arithmetic::madd(e, 0.693359375f, add_rn(f, tail));
}
VF_INLINE double log_normal_fused(double x) { return ::log(x); }
VF_INLINE float log_normal_fused(float x) {
#if defined(__CUDA_ARCH__)
  return ::logf(x);
#else
  return log_normal<Fused>(x);
#endif
}

/// log(x) to 2 ulp for every float: -inf at 0, NaN below, infinity at infinity.
VF_INLINE float log(float x) {
#if defined(__CUDA_ARCH__)
  return ::logf(x);
#else
  const bool tiny = x < 1.17549435e-38f;
  const float l = log_normal<Fused>(tiny ? x * 33554432.0f : x) - (tiny ? 17.3286795f : 0.0f);  // 25 log 2
  const float inf = infinity<float>();
  const float positive = x < inf ? l : x;  // infinity and NaN are their own logarithm
  return x > 0.0f ? positive : (x == 0.0f ? -inf : (x < 0.0f ? inf - inf : x));
#endif
}

/// log(1 + e) for e in [0, 1].
VF_INLINE float log1p_unit(float e) {
  float p = fma(-0.00317605701f, e, 0.0195425265f);
  p = fma(p, e, -0.0563736111f);
  p = fma(p, e, 0.105436236f);
  p = fma(p, e, -0.152696669f);
  p = fma(p, e, 0.196632743f);
  p = fma(p, e, -0.249516159f);
  p = fma(p, e, 0.333297104f);
  p = fma(p, e, -0.499998927f);
  return fma(p * e, e, e);
}
VF_INLINE double log1p_unit(double e) { return ::log1p(e); }

/// log(1 + q) for q in [0, 2^126], relative accuracy kept where q is tiny: what 1 + q rounds away is added to first order.
VF_INLINE float log1p_positive(float q) {
  const float b = 1.0f + q;
  return log_normal_fused(b) + (q - (b - 1.0f)) / b;
}
VF_INLINE double log1p_positive(double q) { return ::log1p(q); }

/// log(1 - s) for s in [0, 1/2].
VF_INLINE float log1m_half(float s) {
  float p = fma(1.40795672f, s, -1.63021171f);
  p = fma(p, s, 1.20501387f);
  p = fma(p, s, -0.181571648f);
  p = fma(p, s, 0.264547586f);
  p = fma(p, s, 0.243437439f);
  p = fma(p, s, 0.333662003f);
  p = fma(p, s, 0.499993742f);
  return -fma(p * s, s, s);
}
VF_INLINE double log1m_half(double s) { return ::log1p(-s); }

/// a / b for b in [2^-126, 2^126], where the device's approximate reciprocal is within 1 ulp.
VF_INLINE float ratio(float a, float b) {
#if defined(__CUDA_ARCH__)
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(b));  // __fdividef would rescale subnormal divisors, which there are none of
  return a * r;
#else
  return a / b;
#endif
}
VF_INLINE double ratio(double a, double b) { return a / b; }

/// sigmoid(a), sigmoid(-a) and softplus(-|a|) from one exponential, each with full relative accuracy.
template <typename T>
struct Logistic {
  bool negative;
  T smaller;  // sigmoid(-|a|)
  T log1p_e;  // softplus(-|a|)

  VF_INLINE explicit Logistic(T a) : Logistic(a, exp_minus_abs(a)) {}
  /// Given e^-|a|, where a term has its own.
  VF_INLINE Logistic(T a, T e) : negative(a < T(0)), smaller(ratio(e, T(1) + e)), log1p_e(log1p_unit(e)) {}
  VF_INLINE T p() const { return negative ? smaller : T(1) - smaller; }
  VF_INLINE T q() const { return negative ? T(1) - smaller : smaller; }
};

/// log(1 + e^t).
template <typename T>
VF_INLINE T softplus(T t) {
  return (t > T(0) ? t : T(0)) + log1p_unit(exp_minus_abs(t));
}

VF_MATH_END

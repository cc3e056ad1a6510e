// Exponentials, logarithms of quotients and differences whose parts may be out of range where they themselves are not.
#pragma once

#include "elementary.h"

VF_MATH_BEGIN

/// a - b as value * unit: a difference beyond the largest number is held as its half.
template <typename T>
struct Difference {
  T value, unit;

  VF_INLINE Difference(T a, T b) {
    const T whole = a - b, half = fma(T(0.5), a, T(-0.5) * b);
    const bool over = abs(whole) > largest<T>();
    value = over ? half : whole;
    unit = over ? T(2) : T(1);
  }
};

/// What a - b, given as `difference`, lost to rounding (Knuth's two-sum).
template <typename T>
VF_INLINE T rounding_of_difference(T a, T b, T difference) {
  const T back = difference - a;
  return (a - (difference - back)) - (b + back);
}

/// e^x with x held to where it is a normal number: neither 0 nor infinite.
VF_INLINE float exp_bounded(float x) {
  const float above = x < -87.0f ? -87.0f : x, y = above > 88.0f ? 88.0f : above;
#if defined(__CUDA_ARCH__)
  return ::expf(y);
#else
  int32_t k;
  const float p = exp_parts(y, k);
  return p * exp2_int(k);
#endif
}
VF_INLINE double exp_bounded(double x) {
  const double above = x < -708.0 ? -708.0 : x;
  return ::exp(above > 709.0 ? 709.0 : above);
}

/// e^x as first * second: one factor, the other being 1, unless e^x is out of range.
template <typename T>
VF_INLINE void exp_factors(T x, T& first, T& second) {
  const bool inside = abs(x) < T(sizeof(T) == 8 ? 700 : 87);
  first = exp_bounded(inside ? x : T(0.5) * x);
  second = inside ? T(1) : first;
}

/// e^-|a| 2^120, a normal number as far as e^-|a| matters beside 1e-30, and 0 beyond.
VF_INLINE float exp_minus_abs_scaled(float a) {
  const float x = -abs(a);
#if defined(__CUDA_ARCH__)
  const float e = ::expf(x < -40.0f ? x + 80.0f : x);  // exact: float has a step of 2^-18 or more here
  return x < -40.0f ? e * 2.39900539e1f : e * 0x1p120f;
#else
  int32_t k;
  const float p = exp_parts(x, k);
  return x < -168.0f ? 0.0f : p * exp2_int(k + 120);
#endif
}
VF_INLINE double exp_minus_abs_scaled(double a) {
  const double root = ::exp(-0.5 * ::fabs(a)) * 0x1p60;
  return root * root;
}

/// e^(x + low) / 2 for a low of a rounding error's size; e^-85 / 2 below x = -85. It is in range up to x = 89.4, where e^x is not.
VF_INLINE float half_exp(float x, float low) {
#if defined(__CUDA_ARCH__)
  const float above = x < -85.0f ? -85.0f : x, e = ::expf(0.5f * (above > 170.0f ? 170.0f : above));
  return 0.5f * e * fma(e, low, e);
#else
  const float above = x < -85.0f ? -85.0f : x;
  int32_t k;
  const float p = exp_parts(above > 90.0f ? 90.0f : above, k), q = fma(p, low, p);
  return (q + q) * exp2_int(k - 2);  // k reaches 130, which is 2^128 and infinity
#endif
}
VF_INLINE double half_exp(double x, double low) {
  const double above = x < -700.0 ? -700.0 : x, e = ::exp(0.5 * (above > 1418.0 ? 1418.0 : above));
  return 0.5 * e * fma(e, low, e);
}

/// log(q 2^k) of a quotient q 2^k = 1 + excess: from the excess where that is small, which is exact where the quotient itself is rounded.
/// q is positive and not subnormal; infinity is read as the largest number.
template <typename T>
VF_INLINE T log_quotient(T q, T k, T excess) {
  const bool near = abs(excess) < T(0.5);
  const T sum = T(1) + excess, lost = excess - (sum - T(1));
  const T l = log_normal_fused(near ? sum : (q > largest<T>() ? largest<T>() : q));
  const T close = fma(lost, T(1) - excess, l);  // log(1 + lost / sum), to rounding
  const T high = T(0.693359375), low = T(-2.121944400546905827679e-4);
  return near ? close : fma(k, high, fma(k, low, l));
}

VF_MATH_END

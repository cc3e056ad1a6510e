// The logarithm of the gamma function, its derivative, and differences of both, for positive arguments.
//
// Everything rests on Binet's remainder of Stirling's formula (DLMF 5.11.1) and its derivative,
//
//   lgamma(z) = (z - 1/2) log z - z + log(2 pi) / 2 + binet(z),     digamma(z) = log z - 1 / (2 z) - binet_slope(z),
//
// which for z >= 1 are smooth and small: at most 0.0811 and 0.0773, z times the one and z^2 times the other a polynomial in 1/z (float) or
// a quotient of two (double), fitted by tools/fit_polynomials.py. Below 1 the recurrence lgamma(z) = lgamma(z + 1) - log z leads there. No
// branches and no loops: float vectorises. Their errors on 1e-8 .. 1e8, relative to max(1, |value|), are within 2.5 units in the last place
// of 1 (5 * 2^-24 in float, 5 * 2^-53 in double), which tests/native/gamma_test.cpp holds them to.
#pragma once

#include "elementary.h"

VF_MATH_BEGIN

/// binet(z) for z >= 1, given w = 1 / z; the fit is off by 5e-9.
VF_INLINE float binet(float w) {
  float p = fma(0.000142218938f, w, -0.000645669876f);
  p = fma(p, w, 0.00106353313f);
  p = fma(p, w, -6.09097333e-05f);
  p = fma(p, w, -0.00277068815f);
  p = fma(p, w, -3.49734535e-07f);
  return fma(p, w, 0.0833333358f) * w;
}
/// -binet'(z), likewise, off by 3e-9.
VF_INLINE float binet_slope(float w) {
  float p = fma(-0.000322592969f, w, 0.00200619828f);
  p = fma(p, w, -0.0051044696f);
  p = fma(p, w, 0.00605148263f);
  p = fma(p, w, -0.000465427584f);
  p = fma(p, w, -0.00828049518f);
  p = fma(p, w, -2.38085158e-06f);
  return fma(p, w, 0.0833333507f) * (w * w);
}

/// (p0 + p1 w + ... + p8 w^8) / (q0 + q1 w + ... + q8 w^8)
VF_INLINE double quotient_of_8(double w, const double (&p)[9], const double (&q)[9]) {
  double a = p[8], b = q[8];
  a = fma(a, w, p[7]), b = fma(b, w, q[7]);
  a = fma(a, w, p[6]), b = fma(b, w, q[6]);
  a = fma(a, w, p[5]), b = fma(b, w, q[5]);
  a = fma(a, w, p[4]), b = fma(b, w, q[4]);
  a = fma(a, w, p[3]), b = fma(b, w, q[3]);
  a = fma(a, w, p[2]), b = fma(b, w, q[2]);
  a = fma(a, w, p[1]), b = fma(b, w, q[1]);
  return fma(a, w, p[0]) / fma(b, w, q[0]);
}
VF_INLINE double binet(double w) {
  constexpr double p[9] = {0.083333333333333606, 0.4985541307054524,  1.5315060050532581,   2.705366179293486,     2.9002700851920804,
                           1.7827138381800582,   0.54511150120232343, 0.046662009471099317, 0.00027885026345289673};
  constexpr double q[9] = {1.0,
                           5.9826495684673846,
                           18.411405393771329,
                           32.663815812425639,
                           35.407430521385528,
                           22.424385395263268,
                           7.5533495034733384,
                           1.0393189604134943,
                           0.037917321246195679};
  return quotient_of_8(w, p, q) * w;
}
VF_INLINE double binet_slope(double w) {
  constexpr double p[9] = {0.083333333333335674, 0.55394687827191491, 1.9197921255485055,  3.8955392371622826,    4.9055762146587991,
                           3.6441274527008356,   1.3889368993086348,  0.14606350693132994, 0.00018602095463963678};
  constexpr double q[9] = {1.0,
                           6.6473625392794666,
                           23.137505504869353,
                           47.411207174520641,
                           61.133044268647858,
                           48.154137176334856,
                           21.7284583656804,
                           4.6452484389383715,
                           0.31592088051073586};
  return quotient_of_8(w, p, q) * (w * w);
}

/// log Gamma(z) for z > 0; infinity at 0, NaN below.
template <typename T>
VF_INLINE T lgamma(T z) {
  const bool low = z < T(1);
  const T y = low ? z + T(1) : z;
  // (y - 1/2) (log y - 1) + log(2 pi) / 2 - 1/2 + binet(y): near the zeros at 1 and 2 every part is below 1
  const T above = (y - T(0.5)) * (log(y) - T(1)) + (T(0.41893853320467274178) + binet(T(1) / y));
  return low ? above - log(z) : above;
}

/// d log Gamma(z) / dz for z > 0; -infinity at 0.
template <typename T>
VF_INLINE T digamma(T z) {
  const bool low = z < T(1);
  const T y = low ? z + T(1) : z, w = T(1) / y, above = log(y) - (T(0.5) * w + binet_slope(w));
  const T here = low ? above - T(1) / z : above;
  return z >= T(0) ? here : (z - z) / (z - z);  // NaN below 0 and for NaN
}

/// lgamma(z + x) - lgamma(z), and its derivative in z, digamma(z + x) - digamma(z), for z > 0 and x >= 0, without cancellation: with
/// n = z + x and r = log(1 + x / z) they are
///
///   (z - 1/2) r + x (log n - 1) + binet(n) - binet(z),     r + x / (2 z n) + binet_slope(z) - binet_slope(n),
///
/// of which the first parts are the small numbers that the difference of two large ones would lose, however large z is. Below z = 1 the
/// recurrence adds -log(1 + x / z) and x / (z (z + x)) to those of z + 1. Both are within 4 units in the last place, of the value relative
/// to max(1, |value|, |log z| for z < 1).
template <typename T>
struct GammaDifference {
  T value, slope;

  VF_INLINE GammaDifference(T z, T x) {
    const bool low = z < T(1);
    const T y = low ? z + T(1) : z, n = y + x, u = T(1) / y, v = T(1) / n, r = log1p_positive(x / y);
    value = ((y - T(0.5)) * r + x * (log(n) - T(1))) + (binet(v) - binet(u));
    slope = r + ((T(0.5) * x) * (u * v) + (binet_slope(u) - binet_slope(v)));
    const T q = x / z;
    value = low ? value - log1p_positive(q) : value;
    slope = low ? slope + q / (z + x) : slope;
  }
};

VF_MATH_END

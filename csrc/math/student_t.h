// The Student-t log-density of one element, value and derivatives.
#pragma once

#include "scale.h"
#include "term.h"

VF_MATH_BEGIN

/// A(z) = log Gamma(z + 1/2) - log Gamma(z) - log(z) / 2 and its derivative, without the cancellation of the first two. Stirling's series
/// of the difference, sum of (2^(1-2k) - 2) B_2k / (2k (2k - 1) z^(2k-1)) (DLMF 5.11.8 with h = 1/2 and h = 0), from z = 4 (8 in double)
/// on; below by the recurrence A(z) = A(z + 1) + log(z (z + 1) / (z + 1/2)^2) / 2, whose derivative is 1 / (4 z (z + 1/2) (z + 1)).
template <typename T>
struct HalfStepOfLogGamma {
  T value, slope;

  VF_INLINE explicit HalfStepOfLogGamma(T z) {
    constexpr T from = T(sizeof(T) == 8 ? 8 : 4);
    const bool low = z < from;
    const T inverse = T(1) / (low ? z + from : z), u = inverse * inverse;
    T quotient, steps;
    recurrence(low ? z : T(1), quotient, steps);
    const T below = T(0.5) * log(quotient);
    value = inverse * series(u) + (low ? below : T(0));
    slope = u * d_series(u) + (low ? steps : T(0));
  }

 private:
  VF_INLINE static float series(float u) {
    float p = fma(-0.00168185764f, u, 0.00118582589f);
    p = fma(p, u, -0.0015625f);
    p = fma(p, u, 0.00520833333f);
    return fma(p, u, -0.125f);
  }
  VF_INLINE static float d_series(float u) {
    float p = fma(0.0151367188f, u, -0.00830078125f);
    p = fma(p, u, 0.0078125f);
    p = fma(p, u, -0.015625f);
    return fma(p, u, 0.125f);
  }
  VF_INLINE static double series(double u) {
    double p = -0.35928737415986902574 + u * 2.7848617779581170333;
    p = 0.059100405375162760417 + u * p;
    p = -0.012819730318509615385 + u * p;
    p = 0.0038341175426136363636 + u * p;
    p = -0.0016818576388888888889 + u * p;
    p = 0.0011858258928571428571 + u * p;
    p = -0.0015625 + u * p;
    p = 0.0052083333333333333333 + u * p;
    return -0.125 + u * p;
  }
  VF_INLINE static double d_series(double u) {
    double p = 6.1078855607177734375 - u * 52.912373781204223633;
    p = -0.88650608062744140625 + u * p;
    p = 0.166656494140625 + u * p;
    p = -0.04217529296875 + u * p;
    p = 0.01513671875 + u * p;
    p = -0.00830078125 + u * p;
    p = 0.0078125 + u * p;
    p = -0.015625 + u * p;
    return 0.125 + u * p;
  }
  VF_INLINE static void recurrence(float z, float& quotient, float& slope) { four_steps(z, quotient, slope); }
  VF_INLINE static void recurrence(double z, double& quotient, double& slope) {
    double other, more;
    four_steps(z, quotient, slope);
    four_steps(z + 4.0, other, more);
    quotient *= other;
    slope += more;
  }
  /// The product of the quotients of z .. z + 3, and the sum of their slopes.
  VF_INLINE static void four_steps(T z, T& quotient, T& slope) {
    const T a = z + T(1), b = z + T(2), c = z + T(3), d = z + T(4);
    const T e = z + T(0.5), f = z + T(1.5), g = z + T(2.5), h = z + T(3.5);
    const T inner = a * b * c, halves = (e * f) * (g * h);
    quotient = ((z * d) * (inner * inner)) / (halves * halves);
    const T first = z * (a * e), second = a * (b * f), third = b * (c * g), fourth = c * (d * h);
    slope = T(0.25) * ((first + second) / (first * second) + (third + fourth) / (third * fourth));
  }
};

/// log t_n(x; m, s) = A(n / 2) - log(2 pi) / 2 - log s - (n + 1) / 2 log(1 + q) with t = (x - m) / s and q = t^2 / n, which turns into the
/// Gaussian as n grows. d/dm = (1 + 1/n) t / (1 + q) / s, d/dlog s = (t^2 - 1) / (1 + q), and with p = q / (1 + q)
/// d/dn = A'(n / 2) / 2 + (p / n - (log(1 + q) - p)) / 2, of which the bracket is p^2 / 2 + p^3 / 3 + ... Far out, where q may be out of
/// range, log(1 + q) = 2 log|x - m| - 2 log s - log n.
template <ScaleForm form>
struct StudentT {
  static constexpr int kInputs = 4, kParams = 0;  // x, loc, degrees of freedom, scale

  template <typename T>
  VF_INLINE static void eval(const T (&in)[kMaxTermInputs], const TermParams<T>&, T& value, T (&d)[kMaxTermInputs]) {
    const T n = in[2];
    const Scale<form, T> s(in[3]);
    const Difference<T> difference(in[0], in[1]);
    const T t = s.divide(difference.value) * difference.unit, q = (t / n) * t, size = abs(difference.value);
    // over a scale of 0 all but the location is far: infinity, and NaN, which is not, there (a condition of two parts is not vectorised)
    const bool can_be_zero = form == ScaleForm::kStd || form == ScaleForm::kVar;
    const bool far = (can_be_zero && in[3] == T(0) ? size * infinity<T>() : q) > T(sizeof(T) == 8 ? 1e18 : 1e10);
    const HalfStepOfLogGamma<T> a(T(0.5) * n);
    const T base = a.value - T(0.91893853320467274178), b = T(1) + q, inverse = T(1) / b;  // log(2 pi) / 2
    const T l = log(far ? size : b), log_n = log(n), log_size = l + (difference.unit > T(1) ? T(0.69314718055994530942) : T(0));
    const T near_log = l + (q - (b - T(1))) * inverse;  // what 1 + q rounds away is added to first order
    const T near = base - s.log_std - (T(0.5) * (n + T(1))) * near_log;
    value = far ? base + (n * s.log_std - (n + T(1)) * (log_size - T(0.5) * log_n)) : near;

    const T near_dm = s.divide(t * ((T(1) + T(1) / n) * inverse)), far_dm = (n + T(1)) / difference.value / difference.unit;
    d[1] = far ? far_dm : near_dm;
    d[0] = -d[1];
    d[3] = s.times_d_log_std(far ? n : (t - T(1)) * inverse, far ? T(1) : t + T(1));
    const T p = far ? T(1) : q * inverse, whole = (far ? T(2) * (log_size - s.log_std) - log_n : near_log) - p;
    d[2] = T(0.5) * a.slope + T(0.5) * (p / n - (p < T(sizeof(T) == 8 ? 0.1 : 0.5) ? rest_of_log(p) : whole));
  }

 private:
  /// -log(1 - p) - p: fitted for p <= 1/2 in float (tools/fit_polynomials.py), the series for p <= 1/10 in double.
  VF_INLINE static float rest_of_log(float p) {
    float r = fma(1.29892862f, p, -1.51463282f);
    r = fma(r, p, 1.10971594f);
    r = fma(r, p, -0.180171743f);
    r = fma(r, p, 0.226563409f);
    r = fma(r, p, 0.193908826f);
    r = fma(r, p, 0.250305086f);
    r = fma(r, p, 0.333327532f);
    r = fma(r, p, 0.5f);
    return (r * p) * p;
  }
  VF_INLINE static double rest_of_log(double p) {
    double r = 1.0 / 16 + p * (1.0 / 17);
    r = 1.0 / 15 + p * r;
    r = 1.0 / 14 + p * r;
    r = 1.0 / 13 + p * r;
    r = 1.0 / 12 + p * r;
    r = 1.0 / 11 + p * r;
    r = 1.0 / 10 + p * r;
    r = 1.0 / 9 + p * r;
    r = 1.0 / 8 + p * r;
    r = 1.0 / 7 + p * r;
    r = 1.0 / 6 + p * r;
    r = 1.0 / 5 + p * r;
    r = 1.0 / 4 + p * r;
    r = 1.0 / 3 + p * r;
    r = 1.0 / 2 + p * r;
    return (r * p) * p;
  }
};

VF_MATH_END

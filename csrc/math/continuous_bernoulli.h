// The log-likelihood of the continuous Bernoulli distribution of one element (Loaiza-Ganem and Cunningham 2019), value and derivatives.
#pragma once

#include "term.h"
#include "wide.h"

VF_MATH_BEGIN

/// log p(x) = x a - log((e^a - 1) / a) = log(c / (1 - e^-c)) - w c with c = |a| and w = 1 - x for a >= 0, else x; d/da = x - mean, where
/// the smaller of mean and 1 - mean is 1 / c - e^-c / (1 - e^-c). Around a = 0, where these cancel, log p(x) = (x - 1/2) a - h(a) and
/// mean = 1/2 + h'(a) with h(a) = log(sinh(a / 2) / (a / 2)), an even function: its series in a^2, sum of B_2k a^2k / (2k (2k)!).
struct ContinuousBernoulli {
  static constexpr int kInputs = 2, kParams = 0;  // x, logits
  static constexpr bool kBounded = true;

  template <typename T>
  VF_INLINE static void eval(const T (&in)[kMaxTermInputs], const TermParams<T>&, T& value, T (&d)[kMaxTermInputs]) {
    const T x = in[0], a = in[1], c = abs(a), u = a * a, middle = x - T(0.5);
    const bool near = c < T(sizeof(T) == 8 ? 1 : 2);
    const T e = exp_minus_abs(a), inverse = T(1) / (T(1) - e), w = a < T(0) ? x : T(1) - x;
    const T far = log_normal_fused(c * inverse) - w * c, close = fma(middle, a, -(u * log_sinhc(u)));
    value = near ? close : far;
    const T towards = (T(1) / c - e * inverse) - w, away = a < T(0) ? -towards : towards, centred = middle - a * d_log_sinhc(u);
    d[0] = a;
    d[1] = near ? centred : away;
  }

 private:
  /// h(a) / a^2 for u = a^2: fitted for |a| <= 2 in float (tools/fit_polynomials.py), the series for |a| <= 1 in double.
  VF_INLINE static float log_sinhc(float u) {
    float p = fma(1.70277914e-09f, u, -1.02051338e-07f);
    p = fma(p, u, 5.50965933e-06f);
    p = fma(p, u, -0.000347221328f);
    return fma(p, u, 0.0416666679f);
  }
  VF_INLINE static double log_sinhc(double u) {
    double p = 4.7700344757099136467e-16 - u * 1.0874343492790309365e-17;
    p = -2.1185501852016142918e-14 + u * p;
    p = 9.5589546647747705949e-13 + u * p;
    p = -4.403491782239577654e-11 + u * p;
    p = 2.0876756987868098979e-9 + u * p;
    p = -1.0333994708994708995e-7 + u * p;
    p = 5.5114638447971781305e-6 + u * p;
    p = -0.00034722222222222222222 + u * p;
    return 0.041666666666666666667 + u * p;
  }
  /// h'(a) / a, likewise.
  VF_INLINE static float d_log_sinhc(float u) {
    float p = fma(1.63568714e-08f, u, -8.11700431e-07f);
    p = fma(p, u, 3.30478215e-05f);
    p = fma(p, u, -0.00138887856f);
    return fma(p, u, 0.0833333358f);
  }
  VF_INLINE static double d_log_sinhc(double u) {
    double p = 8.5860620562778445641e-15 - u * 2.174868698558061873e-16;
    p = -3.3896802963225828668e-13 + u * p;
    p = 1.3382536530684678833e-11 + u * p;
    p = -5.2841901386874931848e-10 + u * p;
    p = 2.0876756987868098979e-8 + u * p;
    p = -8.2671957671957671958e-7 + u * p;
    p = 0.000033068783068783068783 + u * p;
    p = -0.0013888888888888888889 + u * p;
    return 0.083333333333333333333 + u * p;
  }
};

VF_MATH_END

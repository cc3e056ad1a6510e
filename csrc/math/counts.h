// Log-probabilities of one count: Poisson, negative binomial, zero-inflated negative binomial; value and derivatives in the parameters.
//
// They are sums of deviances, as in Loader, "Fast and accurate computation of binomial probabilities" (2000): no difference of large
// logarithms or gamma functions is left in them. With gap(t) = t - log(1 + t) >= 0 and lgamma(x + 1) by Stirling's formula (gamma.h),
//
//   log Poisson(x; m) = x log m - m - lgamma(x + 1) = -x gap((m - x) / x) - log(2 pi x) / 2 - binet(x),     -m for x = 0.
//
// Counts are 0 or more; most are 0, which takes a shorter form. A struct has both, for the CPU's loops to take one after the other:
//   zero(in, params, value, d)        as if x were 0, whatever it is
//   positive(in, params, value, d)    for x >= 1
// There is no derivative in x.
#pragma once

#include "gamma.h"
#include "scale.h"
#include "term.h"

VF_MATH_BEGIN

/// Whether the parameters are given as they are, or as their logarithms.
enum class Space { kLinear, kLog };

/// t - log u, where u = 1 + t is a positive normal number: near 1 from t alone, relative accuracy kept.
VF_INLINE float log_gap(float t, float u) {
  float f, e;
  log_parts(u, f, e);
  const bool near = e == 0.0f;
  const float tail = log1p_minus<Fused>(near ? t : f), far = (t - e * 0.693359375f) - (f + fma(e, -2.12194440e-4f, tail));
  return near ? -tail : far;
}
VF_INLINE double log_gap(double t, double u) {
  const double series = t * t * (0.5 - t * (1.0 / 3 - t * (0.25 - t * (0.2 - t * (1.0 / 6)))));
  const double near = abs(t) < 1e-3 ? series : t - ::log1p(t);
  return abs(t) < 0.5 ? near : t - ::log(u);
}

/// t - log u - shift, where u e^shift = 1 + t, for any u; shift is 0 unless t is near -1. Infinity at u = 0.
VF_INLINE float log_gap(float t, float u, float shift) {
  const bool tiny = u < 1.17549435e-38f;
  float f, e;
  log_parts(tiny ? u * 33554432.0f : u, f, e);
  e = tiny ? e - 25.0f : e;
  const bool near = e == 0.0f && t > -0.5f;  // else u was near 1 by its shift alone
  const float tail = log1p_minus<Fused>(near ? t : f);
  const float far = ((t - e * 0.693359375f) - shift) - (f + fma(e, -2.12194440e-4f, tail));
  return near ? -tail : (u > 0.0f ? far : (u == 0.0f ? infinity<float>() : u + t));
}
VF_INLINE double log_gap(double t, double u, double shift) { return abs(t) < 0.5 ? log_gap(t, u) : (t - ::log(u)) - shift; }

/// A mean m, given as it is or by its logarithm: m = part e^shift, where part is a normal number wherever m > 0, and shift is 0 unless m is
/// very small. A logarithm above 60 is read as 60.
template <Space space, typename T>
struct Mean {
  T m, part, shift;

  VF_INLINE explicit Mean(T given) {
    if constexpr (space == Space::kLinear) {
      const bool small = given < T(0x1p-64);
      m = given;
      part = small ? given * T(0x1p64) : given;
      shift = small ? T(-44.361419555836499802) : T(0);  // 64 log 2
    } else {
      const T top = given > T(60) ? T(60) : given, held = top < T(-60) ? T(-60) : top;
      part = exp(held);
      shift = top - held;
      m = exp(top);
    }
  }
  /// dm / d given
  VF_INLINE T slope(T given) const { return space == Space::kLinear ? T(1) : (given > T(60) ? T(0) : m); }
};

/// log(2 pi x) / 2 + binet(x) for x >= 1
template <typename T>
VF_INLINE T stirling(T x) {
  return T(0.5) * log(x) + (T(0.91893853320467274178) + binet(T(1) / x));
}

/// x, rate: log Poisson(x; rate); d/drate = (x - rate) / rate. The logarithm of a rate may be of any size.
template <Space space>
struct Poisson {
  static constexpr int kInputs = 2, kParams = 0;

  template <typename T>
  VF_INLINE static void zero(const T (&in)[kMaxTermInputs], const TermParams<T>&, T& value, T (&d)[kMaxTermInputs]) {
    const T rate = space == Space::kLinear ? in[1] : exp(in[1]);
    value = -rate;
    d[1] = space == Space::kLinear ? T(-1) : -rate;
  }
  template <typename T>
  VF_INLINE static void positive(const T (&in)[kMaxTermInputs], const TermParams<T>&, T& value, T (&d)[kMaxTermInputs]) {
    const T x = in[0];
    const Mean<space, T> mean(in[1]);
    const T rate = space == Space::kLinear ? mean.m : exp(in[1]);  // infinite where it is
    value = -x * log_gap((rate - x) / x, mean.part / x, mean.shift) - stirling(x);
    d[1] = space == Space::kLinear ? (x - rate) / rate : x - rate;
  }
  template <typename T>
  VF_INLINE static void eval(const T (&in)[kMaxTermInputs], const TermParams<T>& params, T& value, T (&d)[kMaxTermInputs]) {
    in[0] == T(0) ? zero(in, params, value, d) : positive(in, params, value, d);
  }
};

/// x, mu, theta: the negative binomial of mean mu and inverse dispersion theta (variance mu + mu^2 / theta),
///
///   theta log((theta + e) / s) + x log((mu + e) / s) + lgamma(x + theta) - lgamma(theta) - lgamma(x + 1),     s = theta + mu + e,
///
/// where e, the parameter kNbEps, is 0 for the distribution itself, and 1e-8 for what scvi-tools computes (log_nb_positive). With
/// n = x + theta, a = (theta + e) n / (s theta) and b = (mu + e) n / (s x) it is
///
///   -theta gap(a - 1) - x gap(b - 1) + e n / s - log(2 pi x (1 + x / theta)) / 2 + binet(n) - binet(theta) - binet(x)
///   d/dmu = theta (x - mu - e) / ((mu + e) s),     d/dtheta = -gap(a - 1) + E(n) - E(theta) + e (n / (s theta) - 1 / (theta + e))
///
/// with E(z) = digamma(z) - log z = -1 / (2 z) - binet_slope(z); theta log((theta + e) / s) at x = 0. All of it goes over to Poisson's as
/// theta grows. theta is read within [1e-30, 1e30], where neither end is told from 0 and infinity; its logarithm within [-60, 60].
constexpr int kNbEps = 0;
template <Space space>
struct NegativeBinomial {
  static constexpr int kInputs = 3, kParams = 1;

  template <typename T>
  VF_INLINE static void zero(const T (&in)[kMaxTermInputs], const TermParams<T>& params, T& value, T (&d)[kMaxTermInputs]) {
    const T eps = params.at[kNbEps], mu = mean_of(in[1]), theta = dispersion(in[2]);
    const T i = T(1) / ((theta + mu) + eps), t = -mu * i, a = (theta + eps) * i;
    const T gap = log_gap(t, above_0(a));
    value = theta * (t - gap);
    d[1] = slope_of_mean(in[1], mu) * (-theta * i);
    d[2] = slope(in[2], theta) * ((eps > T(0) ? eps * t / (theta + eps) : T(0)) - gap);
  }
  template <typename T>
  VF_INLINE static void positive(const T (&in)[kMaxTermInputs], const TermParams<T>& params, T& value, T (&d)[kMaxTermInputs]) {
    const T eps = params.at[kNbEps], x = in[0], theta = dispersion(in[2]);
    const Mean<space, T> mean(in[1]);
    const T mu = mean.m, mu_eps = mu + eps, n = theta + x, i = T(1) / (theta + mu_eps), q = T(1) / theta, ni = n * i;
    const T gap = log_gap(((x - mu) + (eps * x) * q) * i, above_0(ni * ((theta + eps) * q)));
    // with eps > 0 the mean has a floor, and no exponent of its own
    const T towards = theta * (((x - mu) - eps) * i), part = eps > T(0) ? mu_eps : mean.part, shift = eps > T(0) ? T(0) : mean.shift;
    const T gap_x = log_gap(-towards / x, part * (ni / x), shift);

    const bool low = theta < T(1);
    const T y = low ? theta + T(1) : theta, v = T(1) / y, w = T(1) / n, log1p_q = log1p_positive(q);
    const T binet_theta = (low ? fma(theta + T(0.5), log1p_q, T(-1)) : T(0)) + binet(v);
    value = ((eps * ni - theta * gap) - x * gap_x) + ((binet(w) - binet_theta) - (stirling(x) + T(0.5) * log1p_positive(x * q)));
    const T excess = (low ? T(0.5) * (v - w) + (q - log1p_q) : (T(0.5) * x) * (q * w)) + (binet_slope(v) - binet_slope(w));
    const T share = eps > T(0) ? mu / mu_eps : T(1);
    d[1] = space == Space::kLinear ? towards / mu_eps : (in[1] > T(60) ? T(0) : towards * share);
    const T of_eps = eps > T(0) ? (eps * i) * (n * q) - eps / (theta + eps) : T(0);  // ni q may be out of range
    d[2] = slope(in[2], theta) * ((excess - gap) + of_eps);
  }
  template <typename T>
  VF_INLINE static void eval(const T (&in)[kMaxTermInputs], const TermParams<T>& params, T& value, T (&d)[kMaxTermInputs]) {
    in[0] == T(0) ? zero(in, params, value, d) : positive(in, params, value, d);
  }

 private:
  template <typename T>
  VF_INLINE static T mean_of(T given) {
    return space == Space::kLinear ? given : exp(given > T(60) ? T(60) : given);
  }
  template <typename T>
  VF_INLINE static T slope_of_mean(T given, T mu) {
    return space == Space::kLinear ? T(1) : (given > T(60) ? T(0) : mu);
  }
  template <typename T>
  VF_INLINE static T dispersion(T given) {
    constexpr T least = space == Space::kLinear ? T(1e-30) : T(-60), most = -least;
    if constexpr (space == Space::kLinear) {
      const T high = given < T(1e-30) ? T(1e-30) : given;  // NaN passes through
      return high > T(1e30) ? T(1e30) : high;
    } else {
      const T high = given < least ? least : given;
      return exp(high > most ? most : high);
    }
  }
  /// dtheta / d given
  template <typename T>
  VF_INLINE static T slope(T given, T theta) {
    return space == Space::kLinear ? T(1) : (abs(given) > T(60) ? T(0) : theta);
  }
  /// theta times the logarithm of what underflows is 0 to rounding
  template <typename T>
  VF_INLINE static T above_0(T a) {
    return a < T(1.17549435e-38) ? T(1.17549435e-38) : a;
  }
};

/// x, mu, theta, l: a zero with probability sigmoid(l), else a negative binomial's count: log(sigmoid(l) + sigmoid(-l) NB(0)) for x = 0,
/// log sigmoid(-l) + log NB(x) above (scvi-tools' log_zinb_positive, with its eps).
template <Space space>
struct ZeroInflatedNegativeBinomial {
  using Count = NegativeBinomial<space>;
  static constexpr int kInputs = 4, kParams = 1;

  /// At x = 0, of c = log NB(0) <= 0 and the logit: the value, softplus(c - l) - softplus(-l) with its linear parts taken together, its
  /// derivative in c, and that in l.
  template <typename T>
  VF_INLINE static void inflate(T c, T l, T& value, T& d_count, T& d_logit) {
    const T most = c > l ? c : l;
    const Logistic<T> count(c - l), inflation(l);
    value = (most < T(0) ? most : T(0)) + (count.log1p_e - inflation.log1p_e);
    d_count = count.p();
    d_logit = l < T(0) ? count.q() - inflation.p() : inflation.q() - count.p();
  }
  template <typename T>
  VF_INLINE static void zero(const T (&in)[kMaxTermInputs], const TermParams<T>& params, T& value, T (&d)[kMaxTermInputs]) {
    T of_count, share;
    Count::zero(in, params, of_count, d);
    inflate(of_count, in[3], value, share, d[3]);
    d[1] *= share;
    d[2] *= share;
  }
  template <typename T>
  VF_INLINE static void positive(const T (&in)[kMaxTermInputs], const TermParams<T>& params, T& value, T (&d)[kMaxTermInputs]) {
    T of_count;
    Count::positive(in, params, of_count, d);
    const Logistic<T> inflation(in[3]);
    value = of_count - ((in[3] > T(0) ? in[3] : T(0)) + inflation.log1p_e);
    d[3] = -inflation.p();
  }
  template <typename T>
  VF_INLINE static void eval(const T (&in)[kMaxTermInputs], const TermParams<T>& params, T& value, T (&d)[kMaxTermInputs]) {
    in[0] == T(0) ? zero(in, params, value, d) : positive(in, params, value, d);
  }
};

VF_MATH_END

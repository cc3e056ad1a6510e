// The Bernoulli log-likelihood of one element, over logits and over probabilities, with its four clip modes.
#pragma once

#include "term.h"
#include "wide.h"

VF_MATH_BEGIN

enum class Clip { kNone, kClamp, kAdd, kBce };

/// A clip's parameters: its constant and, for logits, log((1 - eps) / eps).
constexpr int kEps = 0, kLogitBound = 1;
VF_INLINE constexpr int clip_params(Clip clip) { return clip == Clip::kClamp || clip == Clip::kAdd ? 1 : 0; }

/// x log y, with 0 log 0 = 0.
template <typename T>
VF_INLINE T xlogy(T x, T log_y) {
  return x == T(0) ? T(0) : x * log_y;
}
/// x / y, with 0 / 0 = 0.
template <typename T>
VF_INLINE T xovery(T x, T y) {
  return x == T(0) ? T(0) : x / y;
}
template <typename T>
VF_INLINE T at_least(T a, T low) {
  return a < low ? low : a;  // NaN passes through
}

/// x log sigmoid(a) + (1 - x) log sigmoid(-a) = -(w |a| + log(1 + e^-|a|)), w = 1 - x for a >= 0, else x; d/da = x - sigmoid(a).
/// clamp clips the logit; add is log(p + eps); bce floors the logs at -100 and scales the derivative by p q / max(p q, 1e-12).
template <Clip clip>
struct BernoulliLogits {
  static constexpr int kInputs = 2, kParams = clip_params(clip);  // x, logits
  static constexpr bool kBounded = true;

  static void derive(double (&param)[kMaxTermParams]) { param[kLogitBound] = ::log1p(-param[kEps]) - ::log(param[kEps]); }

  template <typename T>
  VF_INLINE static void eval(const T (&in)[kMaxTermInputs], const TermParams<T>& params, T& value, T (&d)[kMaxTermInputs]) {
    const T x = in[0], a = in[1], y = T(1) - x;
    if constexpr (clip == Clip::kNone || clip == Clip::kClamp) {
      T c = a;
      if constexpr (clip == Clip::kClamp) {
        c = c < -params.at[kLogitBound] ? -params.at[kLogitBound] : c;
        c = c > params.at[kLogitBound] ? params.at[kLogitBound] : c;
      }
      const Logistic<T> s(c, exp_minus_abs_quick(c));
      const T w = s.negative ? x : y;
      value = fma(-w, abs(c), -s.log1p_e);
      d[0] = c;
      const T da = away(s, w);
      d[1] = clip == Clip::kClamp && c != a ? T(0) * da : da;
    } else if constexpr (clip == Clip::kAdd) {
      // s is the smaller of p and q; s / (s + eps) = e / (e + eps (1 + e)) with e = e^-|a|, which may be out of range
      const Logistic<T> l(a);
      const T s = l.smaller, rest = T(1) - s, e = exp_minus_abs_scaled(a), eps = params.at[kEps] * T(0x1p120);
      const T share = e / (e + eps / rest), rest_eps = rest + params.at[kEps];
      const T log_s = fma(T(0), s, log_normal_fused(s + params.at[kEps]));  // NaN where s is
      const T log_rest = log_quotient(rest_eps, T(0), params.at[kEps] - s);
      const T log_p = l.negative ? log_s : log_rest, log_q = l.negative ? log_rest : log_s;
      value = x * log_p + y * log_q;
      d[0] = log_p - log_q;
      const T w = l.negative ? x : y, towards = (T(1) - w) * (s * (rest / rest_eps)) - w * (rest * share);
      d[1] = l.negative ? -towards : towards;
    } else {
      const Logistic<T> s(a);
      const T log_p = at_least((a < T(0) ? a : T(0)) - s.log1p_e, T(-100));
      const T log_q = at_least((a > T(0) ? -a : T(0)) - s.log1p_e, T(-100));
      // p q / max(p q, 1e-12) by way of p q 2^120, which is in range where p q is not
      const T rest = T(1) - s.smaller, steepness = (exp_minus_abs_scaled(a) * T(1e12 * 0x1p-120)) * (rest * rest);
      value = x * log_p + y * log_q;
      d[0] = log_p - log_q;
      d[1] = away(s, s.negative ? x : y) * (steepness > T(1) ? T(1) : steepness);
    }
  }

 private:
  /// x - sigmoid(a) without cancellation at either end: w is x for negative a, else 1 - x.
  template <typename T>
  VF_INLINE static T away(const Logistic<T>& s, T w) {
    const T towards = s.smaller - w;
    return s.negative ? -towards : towards;
  }
};

/// log p and log(1 - p), from the smaller of p and 1 - p: its own logarithm, and log1p of it for the other. From p = 1/2 on the difference
/// 1 - p is exact, so nothing is lost at either end.
template <typename T>
struct LogPair {
  T smaller, log_p, log_q;

  VF_INLINE static T least(T p, T q) { return p < T(0.5) ? p : q; }
  /// Given the smaller one, which may have been clipped from below.
  VF_INLINE LogPair(T p, T s, T log_s) : smaller(s) {
    const T log_rest = log1m_half(s);
    log_p = p < T(0.5) ? log_s : log_rest;
    log_q = p < T(0.5) ? log_rest : log_s;
  }
};

/// x log p + (1 - x) log(1 - p); d/dp = x / p - (1 - x) / (1 - p) = (x - p) / (p (1 - p)).
/// clamp clips the smaller of p and 1 - p, so it is exact for any eps in any precision, with zero derivative where it clips; bce is
/// F.binary_cross_entropy.
template <Clip clip>
struct BernoulliProbs {
  static constexpr int kInputs = 2, kParams = clip_params(clip);  // x, probs

  template <typename T>
  VF_INLINE static void eval(const T (&in)[kMaxTermInputs], const TermParams<T>& params, T& value, T (&d)[kMaxTermInputs]) {
    const T x = in[0], p = in[1], y = T(1) - x, q = T(1) - p;
    if constexpr (clip == Clip::kAdd) {
      const T p_eps = p + params.at[kEps], q_eps = q + params.at[kEps];
      const T log_p = log(p_eps), log_q = log(q_eps);
      value = x * log_p + y * log_q;
      d[0] = log_p - log_q;
      d[1] = x / p_eps - y / q_eps;
      return;
    }
    const T least = LogPair<T>::least(p, q);
    if constexpr (clip == Clip::kClamp) {
      const bool clipped = least < params.at[kEps];
      const T s = clipped ? params.at[kEps] : least;  // NaN passes through
      const LogPair<T> l(p, s, log_normal_fused(s));
      value = x * l.log_p + y * l.log_q;
      d[0] = l.log_p - l.log_q;
      const T dp = (x - p) / (s * (T(1) - s));
      d[1] = clipped ? T(0) : dp;
    } else if constexpr (clip == Clip::kNone) {
      const LogPair<T> l(p, least, log(least));
      value = xlogy(x, l.log_p) + xlogy(y, l.log_q);
      d[0] = l.log_p - l.log_q;
      d[1] = xovery(x, p) - xovery(y, q);
    } else {
      const LogPair<T> l(p, least, log(least));
      const T log_p = at_least(l.log_p, T(-100)), log_q = at_least(l.log_q, T(-100));
      value = x * log_p + y * log_q;
      d[0] = log_p - log_q;
      d[1] = (x - p) / at_least(p * q, T(1e-12));
    }
  }
};

VF_MATH_END

// The Bernoulli log-likelihood of one element, over logits and over probabilities, with its four clip modes.
#pragma once

#include "elementary.h"
#include "term.h"

VF_MATH_BEGIN

enum class Clip { kNone, kClamp, kAdd, kBce };

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
  static constexpr int kInputs = 2;  // x, logits

  template <typename T>
  VF_INLINE static void eval(const T (&in)[kMaxInputs], const TermParams<T>& params, T& value, T (&d)[kMaxInputs]) {
    const T x = in[0], a = in[1], y = T(1) - x;
    if constexpr (clip == Clip::kNone || clip == Clip::kClamp) {
      T c = a;
      if constexpr (clip == Clip::kClamp) {
        c = c < -params.logit_bound ? -params.logit_bound : c;
        c = c > params.logit_bound ? params.logit_bound : c;
      }
      const Logistic<T> s(c);
      const T w = c >= T(0) ? y : x;
      value = -(w * abs(c) + s.log1p_e);
      d[0] = c;
      const T da = c >= T(0) ? s.q - y : x - s.p;  // x - sigmoid(c) without cancellation at either end
      d[1] = clip == Clip::kClamp && c != a ? T(0) * da : da;
    } else if constexpr (clip == Clip::kAdd) {
      const Logistic<T> s(a);
      const T p = s.p + params.eps, q = s.q + params.eps;
      const T log_p = log(p), log_q = log(q);
      value = x * log_p + y * log_q;
      d[0] = log_p - log_q;
      d[1] = (x / p - y / q) * (s.p * s.q);
    } else {
      const Logistic<T> s(a);
      const T log_p = at_least((a < T(0) ? a : T(0)) - s.log1p_e, T(-100));
      const T log_q = at_least((a > T(0) ? -a : T(0)) - s.log1p_e, T(-100));
      const T pq = s.p * s.q;
      value = x * log_p + y * log_q;
      d[0] = log_p - log_q;
      d[1] = (a >= T(0) ? s.q - y : x - s.p) * (pq / at_least(pq, T(1e-12)));
    }
  }
};

/// x log p + (1 - x) log(1 - p); d/dp = x / p - (1 - x) / (1 - p).
/// clamp clips the logs, so it is exact for any eps in any precision, with zero derivative where it clips; bce is F.binary_cross_entropy.
template <Clip clip>
struct BernoulliProbs {
  static constexpr int kInputs = 2;  // x, probs

  template <typename T>
  VF_INLINE static void eval(const T (&in)[kMaxInputs], const TermParams<T>& params, T& value, T (&d)[kMaxInputs]) {
    const T x = in[0], p = in[1], y = T(1) - x, q = T(1) - p;
    if constexpr (clip == Clip::kNone) {
      const T log_p = log(p), log_q = log1p(-p);
      value = xlogy(x, log_p) + xlogy(y, log_q);
      d[0] = log_p - log_q;
      d[1] = xovery(x, p) - xovery(y, q);
    } else if constexpr (clip == Clip::kClamp) {
      const bool low = p < params.eps, high = q < params.eps;
      const T c = high ? params.one_minus_eps : (low ? params.eps : p);
      const T c_bar = high ? params.eps : T(1) - c;
      const T r = T(1) / (c * c_bar);
      // log(1 - c) to first order in what the difference lost; from c = 1/2 on it loses nothing
      const T lost = c < T(0.5) ? (T(1) - c_bar) - c : T(0);
      const T log_c = high ? params.log1m_eps : log_normal_fused(c);
      const T log_c_bar = low ? params.log1m_eps : log_normal_fused(c_bar) + lost * (r * c);
      value = x * log_c + y * log_c_bar;
      d[0] = log_c - log_c_bar;
      d[1] = low || high ? T(0) : (x - c) * r;
    } else if constexpr (clip == Clip::kAdd) {
      const T p_eps = p + params.eps, q_eps = q + params.eps;
      const T log_p = log(p_eps), log_q = log(q_eps);
      value = x * log_p + y * log_q;
      d[0] = log_p - log_q;
      d[1] = x / p_eps - y / q_eps;
    } else {
      const T log_p = at_least(log(p), T(-100)), log_q = at_least(log1p(-p), T(-100));
      value = x * log_p + y * log_q;
      d[0] = log_p - log_q;
      d[1] = (x - p) / at_least(p * q, T(1e-12));
    }
  }
};

VF_MATH_END

// Diagonal Gaussians, one element: KL divergence and log-density, value and derivatives.
#pragma once

#include "scale.h"
#include "term.h"

VF_MATH_BEGIN

/// KL(N(m, s^2) || N(p, t^2)) = (e^u - 1 - u + ((m - p) / t)^2) / 2 with u = 2 (log s - log t), floored at `floor` (free bits).
/// d/dm = (m - p) / t^2, d/dlog s = e^u - 1, d/dlog t = 1 - e^u - ((m - p) / t)^2.
template <ScaleForm form, bool prior>
struct Kl {
  static constexpr int kInputs = prior ? 4 : 2;  // mu, scale, prior mu, prior scale

  template <typename T>
  VF_INLINE static void eval(const T (&in)[kMaxInputs], const TermParams<T>& params, T& value, T (&d)[kMaxInputs]) {
    const Scale<form, T> q(in[1]);
    eval(in, q, q.std(), params, value, d);
  }

  /// The same, given the posterior's scale and standard deviation, which sampling needs too.
  template <typename T>
  VF_INLINE static void eval(const T (&in)[kMaxInputs], const Scale<form, T>& q, T std, const TermParams<T>& params, T& value,
                             T (&d)[kMaxInputs]) {
    T u = T(2) * q.log_std, inverse_t = T(1), delta = in[0], d_log_t = T(0);
    if constexpr (prior) {
      const Scale<form, T> p(in[3]);
      u = T(2) * (q.log_std - p.log_std);
      inverse_t = p.inverse_std();
      delta = in[0] - in[2];
      d_log_t = p.d_log_std;
    }
    T ratio;  // s^2 / t^2: of the logs where both may be out of range
    if constexpr (prior && (form == ScaleForm::kLogVar || form == ScaleForm::kLogStd)) {
      ratio = exp(u);
    } else {
      const T r = std * inverse_t;
      ratio = r * r;
    }
    const T scaled = delta * inverse_t;
    const T phi = exp_minus_1_minus(u, ratio);
    const T kl = T(0.5) * (phi + scaled * scaled);
    const T ratio_minus_1 = abs(u) < T(0.5) ? phi + u : ratio - T(1);
    const bool floored = kl < params.floor;
    const T on = floored ? T(0) : T(1);
    value = floored ? params.floor : kl;
    d[0] = on * (scaled * inverse_t);
    d[1] = on * (ratio_minus_1 * q.d_log_std);
    if constexpr (prior) {
      d[2] = -d[0];
      d[3] = -on * ((ratio_minus_1 + scaled * scaled) * d_log_t);
    }
  }
};

/// log N(x; m, 1).
struct GaussianUnit {
  static constexpr int kInputs = 2;  // x, mu

  template <typename T>
  VF_INLINE static void eval(const T (&in)[kMaxInputs], const TermParams<T>&, T& value, T (&d)[kMaxInputs]) {
    const T delta = in[0] - in[1];
    value = T(-0.5) * (delta * delta) - T(0.91893853320467274178);  // log(2 pi) / 2
    d[0] = -delta;
    d[1] = delta;
  }
};

/// log N(x; m, s^2) = -log s - log(2 pi) / 2 - t^2 / 2 with t = (x - m) / s; d/dm = t / s, d/dlog s = t^2 - 1.
template <ScaleForm form>
struct Gaussian {
  static constexpr int kInputs = 3;  // x, mu, scale

  template <typename T>
  VF_INLINE static void eval(const T (&in)[kMaxInputs], const TermParams<T>&, T& value, T (&d)[kMaxInputs]) {
    const Scale<form, T> s(in[2]);
    const T inverse = s.inverse_std();
    const T t = (in[0] - in[1]) * inverse;
    value = T(-0.5) * (t * t) - s.log_std - T(0.91893853320467274178);
    d[0] = -t * inverse;
    d[1] = t * inverse;
    d[2] = (t * t - T(1)) * s.d_log_std;
  }
};

VF_MATH_END

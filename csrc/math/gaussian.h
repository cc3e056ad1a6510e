// Diagonal Gaussians, one element: KL divergence and log-density, value and derivatives.
#pragma once

#include "scale.h"
#include "term.h"

VF_MATH_BEGIN

constexpr int kFloor = 0;  // a KL's parameter: the least value of an element

/// KL(N(m, s^2) || N(p, t^2)) = (r^2 - 1 - log r^2 + z^2) / 2 with r = s / t and z = (m - p) / t, floored at `floor` (free bits).
/// d/dm = z / t, d/dlog s = r^2 - 1, d/dlog t = 1 - r^2 - z^2.
template <ScaleForm form, bool prior>
struct Kl {
  static constexpr int kInputs = prior ? 4 : 2, kParams = 1;  // mu, scale, prior mu, prior scale

  template <typename T>
  VF_INLINE static void eval(const T (&in)[kMaxTermInputs], const TermParams<T>& params, T& value, T (&d)[kMaxTermInputs]) {
    const Scale<form, T> q(in[1]);
    eval(in, q, q.std(), params, value, d);
  }

  /// The same, given the posterior's scale and standard deviation, which sampling needs too.
  template <typename T>
  VF_INLINE static void eval(const T (&in)[kMaxTermInputs], const Scale<form, T>& q, T std, const TermParams<T>& params, T& value,
                             T (&d)[kMaxTermInputs]) {
    if constexpr (prior) {
      const Scale<form, T> p(in[3]);
      const Comparison<form, T> c(q, std, p);
      const Standardised<form, T> z(in[0], in[2], p);
      const bool floored = finish(c, z.t, z.over_std, q, params, value, d);
      d[2] = -d[0];
      d[3] = floored ? T(0) : -p.times_d_log_std(c.excess, c.factor, z.t);
    } else {
      finish(Comparison<form, T>(q, std), in[0], in[0], q, params, value, d);
    }
  }

 private:
  template <typename T>
  VF_INLINE static bool finish(const Comparison<form, T>& c, T z, T z_over_t, const Scale<form, T>& q, const TermParams<T>& params,
                               T& value, T (&d)[kMaxTermInputs]) {
    const T kl = c.half_phi() + (T(0.5) * z) * z;
    const bool floored = kl < params.at[kFloor];
    value = floored ? params.at[kFloor] : kl;
    d[0] = floored ? T(0) : z_over_t;
    d[1] = floored ? T(0) : q.times_d_log_std(c.excess, c.factor);
    return floored;
  }
};

/// log N(x; m, 1).
struct GaussianUnit {
  static constexpr int kInputs = 2, kParams = 0;  // x, mu

  template <typename T>
  VF_INLINE static void eval(const T (&in)[kMaxTermInputs], const TermParams<T>&, T& value, T (&d)[kMaxTermInputs]) {
    const T delta = in[0] - in[1];
    value = (T(-0.5) * delta) * delta - T(0.91893853320467274178);  // log(2 pi) / 2
    d[0] = -delta;
    d[1] = delta;
  }
};

/// log N(x; m, s^2) = -log s - log(2 pi) / 2 - t^2 / 2 with t = (x - m) / s; d/dm = t / s, d/dlog s = t^2 - 1.
template <ScaleForm form>
struct Gaussian {
  static constexpr int kInputs = 3, kParams = 0;  // x, mu, scale
  // gcc vectorises no loop with the other forms' selections of an invariant inside
  static constexpr int kScale = form == ScaleForm::kLogVar || form == ScaleForm::kLogStd ? 2 : -1;

  template <typename T>
  VF_INLINE static void eval(const T (&in)[kMaxTermInputs], const TermParams<T>&, T& value, T (&d)[kMaxTermInputs]) {
    const Scale<form, T> s(in[2]);
    const Standardised<form, T> z(in[0], in[1], s);
    const T t = z.t, energy = (T(0.5) * t) * t;
    value = -energy - s.log_std - T(0.91893853320467274178);
    // a standard deviation of zero: log s is infinite too, and the square of its inverse counts
    if constexpr (form == ScaleForm::kStd || form == ScaleForm::kVar) value = energy == infinity<T>() ? -energy : value;
    d[1] = z.over_std;
    d[0] = -d[1];
    d[2] = s.times_d_log_std(t - T(1), t + T(1));
  }
};

VF_MATH_END

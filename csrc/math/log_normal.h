// The log-normal log-density of one element, value and derivatives.
#pragma once

#include "scale.h"
#include "term.h"

VF_MATH_BEGIN

/// log LogNormal(x; m, s^2) = -log x - log s - log(2 pi) / 2 - t^2 / 2 with t = (log x - m) / s, and -inf for x <= 0, where there is no
/// density. d/dx = -(1 + t / s) / x, d/dm = t / s, d/dlog s = t^2 - 1; all 0 for x <= 0, as nothing moves an impossible x.
template <ScaleForm form>
struct LogNormal {
  static constexpr int kInputs = 3, kParams = 0;  // x, loc, scale

  template <typename T>
  VF_INLINE static void eval(const T (&in)[kMaxTermInputs], const TermParams<T>&, T& value, T (&d)[kMaxTermInputs]) {
    const bool outside = in[0] <= T(0);
    const T x = outside ? T(1) : in[0], log_x = log(x);
    const Scale<form, T> s(in[2]);
    const Standardised<form, T> z(log_x, in[1], s);
    const T t = z.t, energy = (T(0.5) * t) * t;
    T density = -energy - s.log_std - T(0.91893853320467274178) - log_x;
    if constexpr (form == ScaleForm::kStd || form == ScaleForm::kVar) density = energy == infinity<T>() ? -energy : density;  // as Gaussian
    const bool impossible = outside && density == density;                                                                    // NaN stays
    value = impossible ? -infinity<T>() : density;
    // t / s may be out of range where that over x is not
    const T steep = s.divide(t / x), dx = abs(z.over_std) > largest<T>() ? steep : (T(1) + z.over_std) / x;
    d[0] = impossible ? T(0) : -dx;
    d[1] = impossible ? T(0) : z.over_std;
    const T ds = s.times_d_log_std(t - T(1), t + T(1));
    d[2] = impossible ? T(0) : ds;
  }
};

VF_MATH_END

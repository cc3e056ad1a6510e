// The Laplace log-density of one element, value and derivatives.
#pragma once

#include "scale.h"
#include "term.h"

VF_MATH_BEGIN

/// log Laplace(x; m, b) = -log(2 b) - |t| with t = (x - m) / b; d/dm = sign(t) / b (0 at x = m), d/dlog b = |t| - 1.
template <ScaleForm form>
struct Laplace {
  static constexpr int kInputs = 3, kParams = 0;  // x, loc, scale

  template <typename T>
  VF_INLINE static void eval(const T (&in)[kMaxTermInputs], const TermParams<T>&, T& value, T (&d)[kMaxTermInputs]) {
    const Scale<form, T> b(in[2]);
    const T t = Standardised<form, T>(in[0], in[1], b).t, size = abs(t);
    value = size == infinity<T>() ? -size : -size - b.log_std - T(0.69314718055994530942);  // over b = 0 log b is infinite too
    d[1] = b.divide(in[0] > in[1] ? T(1) : (in[0] < in[1] ? T(-1) : t));                    // t itself may be too small a number; NaN stays
    d[0] = -d[1];
    d[2] = b.times_d_log_std(size - T(1), T(1));
  }
};

VF_MATH_END

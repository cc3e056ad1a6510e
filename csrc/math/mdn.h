// One element of a mixture whose scales come as log standard deviations with a floor.
#pragma once

#include "scale.h"

VF_MATH_BEGIN

/// -log N(y; mean, sigma^2) - log(2 pi) / 2 = log sigma + u^2 / 2, with log sigma = max(log_scale, floor) and u = (y - mean) / sigma.
/// d/dmean of the log-density is u / sigma, d/dlog_scale is u^2 - 1 above the floor and 0 at it or below.
template <typename T>
struct MdnElement {
  T energy, d_mean, d_scale;

  VF_INLINE MdnElement(T y, T mean, T log_scale, T floor) {
    const bool floored = log_scale <= floor;
    const Scale<ScaleForm::kLogStd, T> s(floored ? floor : log_scale);
    const Standardised<ScaleForm::kLogStd, T> z(finite(y), finite(mean), s);
    const T u = z.t;
    energy = s.log_std + (T(0.5) * u) * u;
    d_mean = z.over_std;
    d_scale = floored ? T(0) : (u - T(1)) * (u + T(1));
  }

 private:
  /// The largest number for infinity, as anything so far out is; NaN stays NaN.
  VF_INLINE static T finite(T x) {
    const T below = x > largest<T>() ? largest<T>() : x;
    return below < -largest<T>() ? -largest<T>() : below;
  }
};

VF_MATH_END

// One element of a mixture whose scales come as log standard deviations with a floor.
#pragma once

#include "mixture.h"
#include "wide.h"

VF_MATH_BEGIN

/// -log N(y; mean, sigma^2) - log(2 pi) / 2 = log sigma + u^2 / 2, with log sigma = max(log_scale, floor) and u = (y - mean) / sigma.
/// d/dmean of the log-density is u / sigma, d/dlog_scale is u^2 - 1 above the floor and 0 at it or below.
template <typename T>
struct MdnElement {
  T energy, d_mean, d_scale;

  VF_INLINE MdnElement(T y, T mean, T log_scale, T floor) {
    const bool floored = log_scale <= floor;
    const T log_std = floored ? floor : log_scale;
    const T root = exp_bounded(T(-0.5) * log_std);  // of 1 / sigma, which may be out of range
    const T u = ((bounded(y) - bounded(mean)) * root) * root;
    energy = log_std + (T(0.5) * u) * u;
    d_mean = (u * root) * root;
    d_scale = floored ? T(0) : (u - T(1)) * (u + T(1));
  }
};

VF_MATH_END

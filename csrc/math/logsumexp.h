// The derivative of a log-sum-exp, one entry.
#pragma once

#include "elementary.h"

VF_MATH_BEGIN

/// g e^(a - l): the upstream gradient g of l = log sum_k w_k e^{a_k}, as it reaches w_k (and, times w_k, a_k). 0 where nothing was summed
/// (l = -infinity). In two factors where a lies far above l, as entries of weight zero may: the product may be finite where e^(a - l) is
/// not.
template <typename T>
VF_INLINE T logsumexp_gradient(T g, T a, T l) {
  const T x = a - l;
  const bool far = x > T(64);
  const T e = g * exp(far ? x - T(64) : x);
  const T all = far ? e * T(6.2351490808116168829e27) : e;  // e^64
  return l == -infinity<T>() ? T(0) : all;
}

VF_MATH_END

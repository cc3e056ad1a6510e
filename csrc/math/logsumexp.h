// Weights of a log-sum-exp, and its derivative, one entry.
#pragma once

#include "elementary.h"

VF_MATH_BEGIN

/// What is subtracted inside the exponential: the maximum where it is finite, else 0 (all -inf, or a NaN or infinity that shall show in the
/// result).
template <typename T>
VF_INLINE T shift_of(T top) {
  const T inf = infinity<T>();
  return top < inf && top > -inf ? top : T(0);
}

/// g e^(a - l): the upstream gradient g of l = log sum_k w_k e^{a_k}, as it reaches w_k (and, times w_k, a_k). 0 where l is infinite: where
/// nothing was summed, and where an entry was infinite, so that no shares are known. In two factors where a lies far above l, as entries of
/// weight zero may: the product may be finite where e^(a - l) is not.
template <typename T>
VF_INLINE T logsumexp_gradient(T g, T a, T l) {
  const T x = a - l;
  const bool far = x > T(64);
  const T e = g * exp(far ? x - T(64) : x);
  const T all = far ? e * T(6.2351490808116168829e27) : e;  // e^64
  return abs(l) == infinity<T>() ? T(0) : all;
}

/// The derivatives of l in w and in a, the latter w times the former, which may be out of range where it is not: a weight of 1e38 makes
/// e^(a - l) about 1e-38.
template <typename T>
struct LogSumExpGradient {
  T of_w, of_a;

  VF_INLINE LogSumExpGradient(T g, T a, T l, T w) {
    const T x = a - l;
    const bool above = x > T(64), below = x < T(-64);
    const T e = g * exp(above ? x - T(64) : (below ? x + T(64) : x));
    const T rest = above ? T(6.2351490808116168829e27) : (below ? T(1.6038108905486378532e-28) : T(1));  // e^64 or its inverse
    const bool none = abs(l) == infinity<T>();
    of_w = none ? T(0) : e * rest;
    of_a = none || w == T(0) ? T(0) : (w * rest) * e;
  }
};

/// Whether w e^a is summed as e^(a + log w): sums of such weights may be out of range where their logarithm is not, and beside them even
/// the largest a may count for nothing.
template <typename T>
VF_INLINE bool is_extreme_weight(T w) {
  return w > T(1e18) || (w < T(1e-18) && w > T(0));
}
template <typename T>
VF_INLINE void fold_extreme_weight(T& a, T& w) {
  const bool extreme = is_extreme_weight(w);
  a = extreme ? a + log(w) : a;
  w = extreme ? T(1) : w;
}

VF_MATH_END

// The formulas of a mixture of Gaussians, one element at a time; csrc/kernels.h says what is summed over what.
#pragma once

#include "elementary.h"

VF_MATH_BEGIN

/// The farthest number that is read (bounded): the difference of two is finite.
template <typename T>
VF_INLINE constexpr T mixture_far() {
  return sizeof(T) == 8 ? static_cast<T>(8.9e307) : static_cast<T>(1.5e38f);
}

/// x, or the largest number of its sign that is read (for infinity too); NaN stays NaN.
template <typename T>
VF_INLINE T bounded(T x) {
  const T far = mixture_far<T>();
  const T below = x > far ? far : x;
  return below < -far ? -far : below;
}

/// u = (x - mean) / sigma of bounded x and mean, with r = 1 / sigma. Infinite where it is out of range, never NaN unless an argument is.
template <typename T>
VF_INLINE T standardise(T x, T mean, T r) {
  return (x - mean) * r;
}

/// What the weights of a row have in common: grad / total; 0 where no component explains the row. A NaN row has a NaN shift and total.
template <typename T>
VF_INLINE T mixture_share(T grad, T shift, T total) {
  return shift == -infinity<T>() ? T(0) : grad / total;
}

/// A shift that makes e^(l - shift) 0 where no component explains the row, whatever l is.
template <typename T>
VF_INLINE T mixture_shift(T shift) {
  return shift == -infinity<T>() ? infinity<T>() : shift;
}

/// Whether a row's largest term is so large that its own rounding counts for more in an exponential than what its parts have to tell.
template <typename T>
VF_INLINE bool mixture_rounded(T shift) {
  return abs(shift) > T(sizeof(T) == 8 ? 1e16 : 1e8);
}

/// l_k - shift of l_k = constant + low + energy: the first difference is exact where it matters, so the parts' own sizes cost nothing.
template <typename T>
VF_INLINE T mixture_exponent(T constant, T low, T energy, T shift) {
  return ((constant - shift) + low) + energy;
}
/// The same of a rounded row: the difference of what was compared, or the largest term could have any exponential but 1.
template <typename T>
VF_INLINE T mixture_exponent_rounded(T constant, T low, T energy, T shift) {
  const T exponent = mixture_exponent(constant, low, energy, shift), compared = (constant + energy) - shift;
  return mixture_rounded(shift) ? compared : exponent;
}

VF_MATH_END

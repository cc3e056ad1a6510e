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

/// u = (x - c) r - (mean - c) r, one operation less than standardise where x - c is at hand, is off by at most 2^-24 (2 |u| + 4 b) where
/// |mean - c| r <= b, and u^2 / 2 by 2^-24 (2 u^2 + 4 b |u|). With b = 6 that is below 2^-24 (16 u^2 + 8), which the rounding of a handful
/// of operations on u^2 - 1 is allowed anyway.
template <typename T>
VF_INLINE constexpr T mixture_near() {
  return T(6);
}
/// ... as far as x - c is in range.
template <typename T>
VF_INLINE constexpr T mixture_near_centre() {
  return T(1e15);
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

/// 1 / sigma as it is read. The largest finite number is as good as anything beyond: a difference of zero times it is zero. So is the least
/// one above zero (no normal one: the largest difference times that is not small) as anything below: sums in units of it can be divided
/// by it, which is why all read it as it was rounded.
template <typename T>
VF_INLINE T mixture_scale(double log_std) {
  const double most = sizeof(T) == 8 ? 709.78 : 88.72, least = sizeof(T) == 8 ? -744.4 : -103.27;
  const double below = -log_std > most ? most : -log_std;
  return static_cast<T>(exp(below < least ? least : below));
}

/// The larger of two; NaN where either is.
VF_INLINE double larger(double a, double b) { return a != a || a > b ? a : b; }

/// A component's constant, log w + log |1 / sigma|, where it may be the one that the others are measured from: not beyond 1e8, of a
/// component of no width (log std -1e30), since of the others' constants their distance from it would leave nothing.
VF_INLINE double mixture_ordinary(double constant) { return constant > 1e8 ? -infinity<double>() : constant; }

/// What constants are measured from, given the largest ordinary one.
VF_INLINE double mixture_top(double largest) {
  const double top = largest < -1e8 ? -1e8 : largest;
  return abs(largest) < infinity<double>() ? top : 0.0;
}

/// sum_d (u^2 - 1) / 2 where the density has u^2 / 2, and its (2 pi)^(-dims/2).
VF_INLINE double mixture_baseline(double top, int64_t dims) {
  return top - 0.5 * static_cast<double>(dims) * (1.0 + 1.8378770664093454836);
}

/// A constant in two parts, relative to `top`; the second makes up for the first one's rounding.
template <typename T>
struct MixtureConstant {
  T high, low;

  VF_INLINE MixtureConstant(double constant, double top) {
    const double most = sizeof(T) == 8 ? 1.7976931348623157e308 : 3.4028234663852886e38;
    const double relative = constant - top > most ? most : constant - top;
    high = static_cast<T>(relative);
    const double rest = relative - static_cast<double>(high);
    low = static_cast<T>(abs(rest) < infinity<double>() ? rest : 0.0);
  }
};

/// Densities of a dimension by itself are sums of powers of 2, which cost less than powers of e do: u is (x - mean) / sigma times this,
/// sqrt(log2(e) / 2), and a term is 2^(constant - u^2).
template <typename T>
VF_INLINE constexpr T mixture_dim_unit() {
  return static_cast<T>(0.84932180028801904);
}
/// u^2 where x is a standard deviation from the mean.
template <typename T>
VF_INLINE constexpr T mixture_dim_one() {
  return mixture_dim_unit<T>() * mixture_dim_unit<T>();
}

/// The exponent of a component's term, of u^2 and of the row's own log weight (`weighted`): the same number wherever it is computed.
template <bool weighted, typename T>
VF_INLINE T mixture_dim_exponent(T constant, T square, T weight) {
  return (weighted ? fma(weight, T(1.4426950408889634), constant) : constant) - square;
}

/// Whether no term that counts was out of range in a sum without a shift of the exponents; false for NaN.
template <typename S>
VF_INLINE bool mixture_dim_in_range(S total, bool is_double) {
  return total > static_cast<S>(is_double ? 1e-250 : 1e-25) && total < static_cast<S>(is_double ? 1e300 : 1e35);
}

/// log sum_k 2^(l_k), of the largest l, or 0, and the sum relative to it.
template <typename T>
VF_INLINE double mixture_dim_log(T shift, T total) {
  return 0.69314718055994531 * static_cast<double>(shift) + static_cast<double>(log(total));
}

/// d log p / d logit_k, where `count` is the sum of component k's responsibilities and `all` that of every component's.
VF_INLINE double mixture_logit_gradient(double count, double log_weight, double all) { return count - exp(log_weight) * all; }

VF_MATH_END

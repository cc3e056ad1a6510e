// A scale held between two bounds, of one element: value and derivative. Whatever the form of the scale, it is the number as it is given
// that is held.
#pragma once

#include "../term_args.h"
#include "elementary.h"

VF_MATH_BEGIN

/// The bounds in the compute type, and what follows from them.
template <typename T>
struct Bounds {
  T low, high, middle, half, width, inverse_half;

  VF_INLINE explicit Bounds(const Bound& b)
      : low(static_cast<T>(b.low)),
        high(static_cast<T>(b.high)),
        middle(static_cast<T>(0.5 * b.low + 0.5 * b.high)),
        half(static_cast<T>(0.5 * b.high - 0.5 * b.low)),
        width(static_cast<T>(b.high - b.low)),
        inverse_half(static_cast<T>(1.0 / (0.5 * b.high - 0.5 * b.low))) {}
};

/// x held to [low, high], and the derivative:
///   clamp             as torch.clamp has it: 1 from low to high, edges included, 0 outside
///   straight-through  the same value; 1 everywhere
///   softclip          low + softplus(u - low) with u = high - softplus(high - x) (Chua et al. 2018, appendix A.1)
///   tanh              m + h tanh((x - m) / h), m the middle and h half the width; far from m as the distance from the bound, or the
///                     value would be known to the rounding of m, many times that of a small bound
template <BoundMode mode, typename T>
VF_INLINE void hold(T x, const Bounds<T>& b, T& value, T& slope) {
  if constexpr (mode == BoundMode::kSoftClip) {
    const Logistic<T> above(b.high - x);
    const T rest = b.high - x, soft = (rest > T(0) ? rest : T(0)) + above.log1p_e;
    const T over = (b.high - soft) - b.low;
    const Logistic<T> below(over);
    value = b.low + ((over > T(0) ? over : T(0)) + below.log1p_e);
    slope = above.p() * below.p();
  } else if constexpr (mode == BoundMode::kTanh) {
    const T t = (x - b.middle) * b.inverse_half;
    const T e = exp_minus_abs(t + t), inverse = ratio(T(1), T(1) + e), size = (T(1) - e) * inverse;
    const T left = b.width * (e * inverse);  // h (1 - tanh |t|)
    const T near = fma(b.half, t < T(0) ? -size : size, b.middle), far = t < T(0) ? b.low + left : b.high - left;
    value = e > T(0.37) ? near : far;  // |t| < 1/2
    slope = (T(4) * e) * (inverse * inverse);
  } else {
    value = x < b.low ? b.low : (x > b.high ? b.high : x);
    slope = mode == BoundMode::kStraightThrough || (x >= b.low && x <= b.high) ? T(1) : T(0);
  }
}

VF_MATH_END

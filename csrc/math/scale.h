// The five forms in which a standard deviation may be given.
#pragma once

#include "wide.h"

VF_MATH_BEGIN

enum class ScaleForm { kLogVar, kLogStd, kStd, kVar, kSoftplus };

/// a * b, and 0 for a = 0 whatever b: no noise, no difference, no gradient, even where the scale is out of range.
template <typename T>
VF_INLINE T times(T a, T b) {
  return a == T(0) ? T(0) : a * b;
}

/// Of a scale s: std, log std, their derivatives in s, and division by std. The log forms never leave the log domain. What is not used is
/// not computed.
template <ScaleForm form, typename T>
struct Scale {
  static constexpr bool kIsLog = form == ScaleForm::kLogVar || form == ScaleForm::kLogStd;

  static constexpr T kLow = T(sizeof(T) == 8 ? -37 : -17);  // kSoftplus: log std is s to rounding below

  T s, log_std;
  T first, second;  // 1 / std, as a product: each factor is in range where 1 / std is not, and both are on one side of 1
  T exponent;       // kStd: log2 of 1 / second
  T slope;          // kSoftplus: d log std / ds
  T bend;           // kSoftplus: d slope / ds

  VF_INLINE explicit Scale(T t) : s(t), exponent(0), slope(0), bend(0) {
    if constexpr (kIsLog) {
      log_std = form == ScaleForm::kLogVar ? T(0.5) * t : t;
      exp_factors(-log_std, first, second);
    } else if constexpr (form == ScaleForm::kStd) {
      constexpr T up = sizeof(T) == 8 ? T(0x1p512) : T(0x1p64f), down = T(1) / up;
      log_std = log(t);
      second = t < down ? up : (t > up ? down : T(1));
      exponent = (t < down ? T(-1) : (t > up ? T(1) : T(0))) * T(sizeof(T) == 8 ? 512 : 64);
      first = finite(T(1) / (t * second));
    } else if constexpr (form == ScaleForm::kVar) {
      log_std = T(0.5) * log(t);
      first = finite(T(1) / sqrt(t));
      second = T(1);
    } else {
      // softplus(t) is e^t to rounding where it may underflow; elsewhere d log softplus(t) / dt = sigmoid(t) / softplus(t)
      const bool low = t < kLow;
      const Logistic<T> logistic(t);
      const T inverse = T(1) / softplus(t);
      exp_factors(-t, first, second);
      log_std = low ? t : log(softplus(t));
      first = low ? first : inverse;
      second = low ? second : T(1);
      slope = low ? T(1) : logistic.p() * inverse;
      bend = slope * (logistic.q() - slope);
    }
  }

  VF_INLINE T std() const {
    if constexpr (form == ScaleForm::kStd) return s;
    if constexpr (form == ScaleForm::kVar) return sqrt(s);
    if constexpr (form == ScaleForm::kSoftplus) return softplus(s);
    return exp(log_std);
  }

  /// std as a product, whose factors are in range where std is not; the second is then not 1.
  VF_INLINE void std_factors(T& a, T& b) const {
    if constexpr (kIsLog) {
      exp_factors(log_std, a, b);
    } else {
      a = std(), b = T(1);
    }
  }

  /// mu + noise std, also where std, or the product alone, is out of range.
  VF_INLINE T sample(T mu, T noise) const {
    T first_part, rest;
    std_factors(first_part, rest);
    return noise == T(0) ? mu : fma_rn(noise * rest, first_part, mu);
  }

  /// a d std / ds, likewise, given std_factors.
  VF_INLINE T times_d_std(T a, T first_part, T rest) const {
    if constexpr (form == ScaleForm::kLogVar) return times(a, T(0.5) * first_part) * rest;
    if constexpr (form == ScaleForm::kLogStd) return times(a, first_part) * rest;
    if constexpr (form == ScaleForm::kStd) return a;
    if constexpr (form == ScaleForm::kVar) return times(a, T(0.5) / first_part);
    return times(a, Logistic<T>(s).p());
  }

  /// a / std
  VF_INLINE T divide(T a) const { return form == ScaleForm::kVar ? a * first : (a * second) * first; }

  /// a b d log std / ds, for which the product a b may be out of range.
  VF_INLINE T times_d_log_std(T a, T b) const {
    if constexpr (form == ScaleForm::kLogVar) return (T(0.5) * a) * b;
    if constexpr (form == ScaleForm::kLogStd) return a * b;
    if constexpr (form == ScaleForm::kStd) return (a * first) * (b * second);
    if constexpr (form == ScaleForm::kVar) return ((T(0.5) * a) * first) * (b * first);
    return (a * slope) * b;
  }
  /// (a b + c^2) d log std / ds for a b >= -1.
  VF_INLINE T times_d_log_std(T a, T b, T c) const {
    const T first_part = times_d_log_std(a, b), sum = first_part + times_d_log_std(c, c);
    if constexpr (form == ScaleForm::kStd || form == ScaleForm::kVar) {
      // over a tiny standard deviation the parts may both be out of range, with opposite signs
      const T at_once = form == ScaleForm::kStd ? divide(a * b + c * c) : divide(divide(T(0.5) * (a * b + c * c)));
      return first_part == -infinity<T>() ? at_once : sum;
    }
    return sum;
  }

 private:
  /// At most the largest number: a difference of exactly zero over a standard deviation of zero is then zero, not NaN.
  VF_INLINE static T finite(T a) { return a > largest<T>() ? largest<T>() : a; }
};

/// t = (a - b) / std and t / std, wherever a - b lies.
template <ScaleForm form, typename T>
struct Standardised {
  T t, over_std;

  VF_INLINE Standardised(T a, T b, const Scale<form, T>& scale) {
    const Difference<T> difference(a, b);
    const T u = scale.divide(difference.value);
    t = u * difference.unit;
    over_std = scale.divide(u) * difference.unit;
  }
};

/// How s compares with t, of two standard deviations: w = log(s / t), and (s / t)^2 - 1 as a product. Exact to rounding where s is near t,
/// whatever their size, and nowhere out of range before (s / t)^2 / 2 is.
template <ScaleForm form, typename T>
struct Comparison {
  T w, excess, factor;  // (s / t)^2 - 1 = excess * factor

  /// With a standard deviation of one.
  VF_INLINE Comparison(const Scale<form, T>& q, T std) : w(q.log_std), factor(1) {
    if constexpr (Scale<form, T>::kIsLog) {
      of_logs((T(0.5) * std) * std);
    } else if constexpr (form == ScaleForm::kVar) {
      excess = q.s - T(1);
    } else {
      excess = std - T(1), factor = std + T(1);
      // softplus(log(e - 1)) = 1; the constant in two parts
      if constexpr (form == ScaleForm::kSoftplus) {
        const T high = T(0.5413248538970947), low = T(7.1582338241585635e-10);
        between(q, (q.s - high) - low, T(0.63212055882855767840), T(-0.16703224295889842));
      }
    }
  }

  VF_INLINE Comparison(const Scale<form, T>& q, T std, const Scale<form, T>& p) : factor(1) {
    if constexpr (Scale<form, T>::kIsLog) {
      *this = Comparison(q.log_std, p.log_std);
      return;
    }
    const T ratio = p.divide(std), inf = infinity<T>();
    const bool tiny = ratio < T(sizeof(T) == 8 ? 0x1p-500 : 0x1p-60);  // perhaps not a normal number
    if constexpr (form == ScaleForm::kStd) {
      excess = p.divide(q.s - p.s);
      factor = ratio + T(1);
      const T raise = T(sizeof(T) == 8 ? 0x1p300 : 0x1p40), k = (q.exponent - p.exponent) - T(sizeof(T) == 8 ? 300 : 40);
      w = log_quotient(tiny ? ((q.s * q.second) * raise) * p.first : ratio, tiny ? k : T(0), excess);
      const T least = q.s < p.s ? q.s : p.s;
      w = least > T(0) ? w : (least < T(0) ? inf - inf : -inf);
    } else if constexpr (form == ScaleForm::kVar) {
      const T of_variances = p.divide(p.divide(q.s - p.s));
      const bool near = abs(of_variances) < T(0.5);
      excess = near ? of_variances : ratio - T(1);
      factor = near ? T(1) : ratio + T(1);
      const T raise = T(sizeof(T) == 8 ? 0x1p300 : 0x1p40), k = T(sizeof(T) == 8 ? -300 : -40);
      const T l = log_quotient(tiny ? (std * raise) * p.first : ratio, tiny ? k : T(0), near ? of_variances : T(1));
      w = q.s == T(0) ? -inf : (near ? T(0.5) * l : l);
    } else {
      const bool low = (q.s > p.s ? q.s : p.s) < Scale<form, T>::kLow;  // both
      const Comparison deep(q.s, p.s);
      excess = p.divide(std - p.std());
      factor = ratio + T(1);
      const T l = log_quotient(ratio, T(0), excess);
      w = tiny ? q.log_std - p.log_std : l;
      if constexpr (sizeof(T) == 4) between(q, q.s - p.s, p.slope, p.bend);  // double has digits to spare, and CUDA no registers
      w = low ? deep.w : w;
      excess = low ? deep.excess : excess;
      factor = low ? deep.factor : factor;
    }
  }

  /// (r^2 - 1 - log r^2) / 2 for r = s / t
  VF_INLINE T half_phi() const { return close() ? near_phi() : (T(0.5) * excess) * factor - w; }

 private:
  VF_INLINE bool close() const { return abs(w) < T(0.25); }
  VF_INLINE T near_phi() const { return T(0.5) * exp_minus_1_minus(T(2) * w, T(0)); }
  VF_INLINE void of_logs(T half) {  // half = (s / t)^2 / 2
    excess = close() ? near_phi() + w : half - T(0.5);
    factor = T(2);
  }
  /// From the logarithms alone.
  VF_INLINE Comparison(T log_s, T log_t) {
    w = log_s - log_t;
    const T low = abs(w) < T(800) ? rounding_of_difference(log_s, log_t, w) : T(0);
    const T half = half_exp(T(2) * w, T(2) * low);
    w = w > largest<T>() ? largest<T>() : w;  // where e^2w is infinite anyway
    of_logs(half);
  }
  /// kSoftplus: log s - log t over a short step, as the integral of the slope by the trapezoidal rule and its first Euler-Maclaurin term.
  VF_INLINE void between(const Scale<form, T>& q, T step, T slope, T bend) {
    const bool near = abs(step) < T(sizeof(T) == 8 ? 1e-3 : 0.25);
    const T integral = step * (T(0.5) * (q.slope + slope) - step * T(1.0 / 12) * (q.bend - bend));
    w = near ? integral : w;
    const T near_excess = near_phi() + w;
    excess = near ? near_excess : excess;
    factor = near ? T(2) : factor;
  }
};

VF_MATH_END

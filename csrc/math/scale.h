// The five forms in which a standard deviation may be given.
#pragma once

#include "elementary.h"

VF_MATH_BEGIN

enum class ScaleForm { kLogVar, kLogStd, kStd, kVar, kSoftplus };

/// Of a scale s: std, log std, their derivatives in s, and the ratio of two variances. The log forms never leave the log domain.
template <ScaleForm form, typename T>
struct Scale {
  T s, log_std, d_log_std;  // d log std / ds

  VF_INLINE explicit Scale(T t) : s(t) {
    if constexpr (form == ScaleForm::kLogVar) {
      log_std = T(0.5) * t;
      d_log_std = T(0.5);
    } else if constexpr (form == ScaleForm::kLogStd) {
      log_std = t;
      d_log_std = T(1);
    } else if constexpr (form == ScaleForm::kStd) {
      log_std = log(t);
      d_log_std = T(1) / t;
    } else if constexpr (form == ScaleForm::kVar) {
      log_std = T(0.5) * log(t);
      d_log_std = T(0.5) / t;
    } else {
      // log softplus(t) = t - e^t / 2 + O(e^2t), where softplus itself underflows; its derivative is sigmoid(t) / softplus(t)
      const T e = exp(t), sp = softplus(t);
      const bool low = t < T(sizeof(T) == 8 ? -20 : -9);
      log_std = low ? t - T(0.5) * e : log(sp);
      d_log_std = low ? T(1) - T(0.5) * e : Logistic<T>(t).p() / sp;
    }
  }

  VF_INLINE T std() const {
    if constexpr (form == ScaleForm::kStd) return s;
    if constexpr (form == ScaleForm::kVar) return sqrt(s);
    if constexpr (form == ScaleForm::kSoftplus) return softplus(s);
    return exp(log_std);
  }

  /// d std / ds
  VF_INLINE T d_std(T std) const {
    if constexpr (form == ScaleForm::kLogVar) return T(0.5) * std;
    if constexpr (form == ScaleForm::kLogStd) return std;
    if constexpr (form == ScaleForm::kStd) return T(1);
    if constexpr (form == ScaleForm::kVar) return T(0.5) / std;
    return Logistic<T>(s).p();
  }

  /// 1 / std, at most the largest finite number: a difference of exactly zero times it is then zero, not NaN.
  VF_INLINE T inverse_std() const {
    T inverse;
    if constexpr (form == ScaleForm::kStd) {
      inverse = T(1) / s;
    } else if constexpr (form == ScaleForm::kVar) {
      inverse = T(1) / sqrt(s);
    } else {
      inverse = exp(-log_std);
    }
    return inverse > largest<T>() ? largest<T>() : inverse;
  }
};

/// a * b, and 0 for a = 0 whatever b: no noise, no difference, no gradient, even where the scale is out of range.
template <typename T>
VF_INLINE T times(T a, T b) {
  return a == T(0) ? T(0) : a * b;
}

VF_MATH_END

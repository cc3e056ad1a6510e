// A term is an elementwise function of up to four inputs that is summed over the event dimensions of a sample. Each is a struct with
//   kInputs                                    how many inputs
//   eval(in, params, value, d)                 its value and its derivative in every input (what is not used is not computed)
// and, if no derivative is ever out of range, kBounded = true.
#pragma once

#include <type_traits>

#include "portable.h"

VF_MATH_BEGIN

constexpr int kMaxInputs = 4;

/// Whether no derivative of a term is ever out of range.
template <class Term, typename = void>
struct IsBounded : std::false_type {};
template <class Term>
struct IsBounded<Term, std::enable_if_t<Term::kBounded>> : std::true_type {};

/// What an upstream gradient makes of a derivative: nothing, if it is 0, even where the derivative is out of range.
template <class Term, typename T>
VF_INLINE T chain(T g, T d) {
  return !IsBounded<Term>::value && g == T(0) ? T(0) : g * d;
}

/// coefficient * sum, where a coefficient of 0 leaves nothing of a sum that is out of range; NaN stays.
VF_INLINE double weighed(double coefficient, double sum) {
  return coefficient == 0.0 && (sum > largest<double>() || sum < -largest<double>()) ? 0.0 : coefficient * sum;
}

/// Constants of a call, with what is derived from them worked out once in double.
template <typename T>
struct TermParams {
  T eps;          // Bernoulli clip constant
  T logit_bound;  // log((1 - eps) / eps)
  T floor;        // least value of a KL element

  static TermParams make(double eps, double floor) { return {T(eps), T(::log1p(-eps) - ::log(eps)), T(floor)}; }
};

VF_MATH_END

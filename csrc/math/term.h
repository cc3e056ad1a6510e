// A term is an elementwise function of up to four inputs that is summed over the event dimensions of a sample. Each is a struct with
//   kInputs, kParams                           how many inputs, and how many parameters of the call
//   eval(in, params, value, d)                 its value and its derivative in every input (what is not used is not computed)
// and, where they apply,
//   kBounded = true                            no derivative is ever out of range
//   derive(param)                              fills in, on the host and in double, what follows from the parameters
//   kScale                                     the input that is often one number for all elements: loops for that are compiled; -1: none
// A term of counts has zero(...) and positive(...) beside eval(...), see counts.h.
#pragma once

#include <type_traits>

#include "../term_args.h"
#include "portable.h"

VF_MATH_BEGIN

/// Whether no derivative of a term is ever out of range.
template <class Term, typename = void>
struct IsBounded : std::false_type {};
template <class Term>
struct IsBounded<Term, std::enable_if_t<Term::kBounded>> : std::true_type {};

/// Whether a term names its scale, and which input that is.
template <class Term, typename = void>
struct HasScale : std::false_type {
  static constexpr int input = 0;
};
template <class Term>
struct HasScale<Term, std::enable_if_t<(Term::kScale >= 0)>> : std::true_type {
  static constexpr int input = Term::kScale;
};

/// Whether a term's first input is a count.
template <class Term, typename = void>
struct IsOfCounts : std::false_type {};
template <class Term>
struct IsOfCounts<Term, std::void_t<decltype(&Term::template positive<float>)>> : std::true_type {};

/// Whether it is one that has zeros besides those of another, its Count.
template <class Term, typename = void>
struct IsInflated : std::false_type {};
template <class Term>
struct IsInflated<Term, std::void_t<typename Term::Count>> : std::true_type {};

/// What an upstream gradient makes of a derivative: nothing, if it is 0, even where the derivative is out of range.
template <class Term, typename T>
VF_INLINE T chain(T g, T d) {
  return !IsBounded<Term>::value && g == T(0) ? T(0) : g * d;
}

/// coefficient * sum, where a coefficient of 0 leaves nothing of a sum that is out of range; NaN stays.
VF_INLINE double weighed(double coefficient, double sum) {
  return coefficient == 0.0 && (sum > largest<double>() || sum < -largest<double>()) ? 0.0 : coefficient * sum;
}

/// The parameters of a call in the compute type, and what follows from them.
template <typename T>
struct TermParams {
  T at[kMaxTermParams];
};

template <class Term, typename = void>
struct Derives : std::false_type {};
template <class Term>
struct Derives<Term, std::void_t<decltype(&Term::derive)>> : std::true_type {};

/// The parameters of a call of a term, on the host, once a call.
template <class Term, typename T>
TermParams<T> term_params(const double (&given)[kMaxTermParams]) {
  double param[kMaxTermParams];
  for (int i = 0; i < kMaxTermParams; ++i) param[i] = given[i];
  if constexpr (Derives<Term>::value) Term::derive(param);
  TermParams<T> params;
  for (int i = 0; i < kMaxTermParams; ++i) params.at[i] = static_cast<T>(param[i]);
  return params;
}

VF_MATH_END

// A term is an elementwise function of up to four inputs that is summed over the event dimensions of a sample. Each is a struct with
//   kInputs                                    how many inputs
//   eval(in, params, value, d)                 its value and its derivative in every input (what is not used is not computed)
#pragma once

#include "portable.h"

VF_MATH_BEGIN

constexpr int kMaxInputs = 4;

/// Constants of a call, with what is derived from them worked out once in double.
template <typename T>
struct TermParams {
  T eps;          // Bernoulli clip constant
  T logit_bound;  // log((1 - eps) / eps)
  T floor;        // least value of a KL element

  static TermParams make(double eps, double floor) { return {T(eps), T(::log1p(-eps) - ::log(eps)), T(floor)}; }
};

VF_MATH_END

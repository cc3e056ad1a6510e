// The table of terms on the device: a term's index, known at run time and equal for all threads, to its struct.
#pragma once

#include <tuple>
#include <type_traits>

#include "launch.h"

namespace vae_fast {
namespace cuda {

namespace math = generic::math;

template <typename T>
struct Which {
  using type = T;
};

template <typename... Terms>
struct TermList {
  static constexpr int kCount = sizeof...(Terms);

  template <typename T>
  static constexpr bool kHas = (std::is_same_v<T, Terms> || ...);

  static int inputs(int term) {
    const int table[] = {Terms::kInputs...};
    return table[term];
  }

  template <int i>
  using At = Which<std::tuple_element_t<(i < kCount ? i : 0), std::tuple<Terms...>>>;

  /// f(Which<the term>()).
  template <typename F>
  VF_DEVICE static auto call(int term, F&& f) {
    static_assert(kCount <= 32, "add cases");
    decltype(f(At<0>())) result{};
#define VF_CASE(i)                                 \
  case i:                                          \
    if constexpr (i < kCount) result = f(At<i>()); \
    break;
#define VF_CASES(i) VF_CASE(i) VF_CASE(i + 1) VF_CASE(i + 2) VF_CASE(i + 3)
    switch (term) { VF_CASES(0) VF_CASES(4) VF_CASES(8) VF_CASES(12) VF_CASES(16) VF_CASES(20) VF_CASES(24) VF_CASES(28) }
#undef VF_CASES
#undef VF_CASE
    return result;
  }
};

template <typename Skip, typename... Terms>
struct DropFirst {
  using type = TermList<Terms...>;
};

#define VF_COMMA_TERM(name, ...) , __VA_ARGS__
namespace table {
using namespace generic::math;
using AllTerms = DropFirst<void VF_FOR_EACH_TERM(VF_COMMA_TERM)>::type;
using KlTerms = DropFirst<void VF_FOR_EACH_KL(VF_COMMA_TERM)>::type;  // the first of AllTerms
}  // namespace table
#undef VF_COMMA_TERM
using table::AllTerms;
using table::KlTerms;

inline bool is_kl(int term) { return term < KlTerms::kCount; }

/// One run of a thread's elements: in[i][e] becomes g df/din_i, and the sum of f over from <= e < to is returned.
/// A g of 0 makes it 0 even where the derivative is out of range.
template <typename Term, bool kGrad, typename C, int kRows, int N>
VF_DEVICE C evaluate(const math::TermParams<C>& params, C g, int from, int to, C (&in)[kRows][N]) {
  C sum = C(0);
#pragma unroll
  for (int e = 0; e < N; ++e) {
    C x[kMaxTermInputs] = {}, d[kMaxTermInputs] = {}, value;
#pragma unroll
    for (int i = 0; i < Term::kInputs; ++i) x[i] = in[i][e];
    Term::eval(x, params, value, d);
    sum += e >= from && e < to ? value : C(0);
    if (kGrad) {
#pragma unroll
      for (int i = 0; i < Term::kInputs; ++i) in[i][e] = math::chain<Term>(g, d[i]);
    }
  }
  return sum;
}

/// f(integral constant of the scale form).
template <typename F>
VF_DEVICE void with_form(int form, F&& f) {
  using math::ScaleForm;
  switch (static_cast<ScaleForm>(form)) {
    case ScaleForm::kLogVar:
      f(std::integral_constant<ScaleForm, ScaleForm::kLogVar>());
      break;
    case ScaleForm::kLogStd:
      f(std::integral_constant<ScaleForm, ScaleForm::kLogStd>());
      break;
    case ScaleForm::kStd:
      f(std::integral_constant<ScaleForm, ScaleForm::kStd>());
      break;
    case ScaleForm::kVar:
      f(std::integral_constant<ScaleForm, ScaleForm::kVar>());
      break;
    case ScaleForm::kSoftplus:
      f(std::integral_constant<ScaleForm, ScaleForm::kSoftplus>());
      break;
  }
}

}  // namespace cuda
}  // namespace vae_fast

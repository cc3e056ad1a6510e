// The table of terms on the device: a term's index, known at run time and equal for all threads, to its struct.
#pragma once

#include <tuple>
#include <type_traits>

#include "../term_table.h"
#include "launch.h"

namespace vae_fast {
namespace cuda {

namespace math = generic::math;

template <typename T>
struct Which {
  using type = T;
};

/// A row of the table.
template <TermKind kind, typename Struct>
struct TermRow {
  static constexpr TermKind kKind = kind;
  using Term = Struct;
};

/// The rows, and a way from an index among all of them to the struct; `only_kl` compiles the KLs alone.
template <bool only_kl, typename... Rows>
struct TermList {
  static constexpr int kCount = sizeof...(Rows);
  static constexpr TermKind kKinds[] = {Rows::kKind...};

  /// Whether a struct is that of a KL.
  template <typename T>
  static constexpr bool kIsKl = ((std::is_same_v<T, typename Rows::Term> && Rows::kKind == TermKind::kKl) || ...);

  static bool is_kl(int term) {
    const TermKind kinds[] = {Rows::kKind...};
    return term >= 0 && term < kCount && kinds[term] == TermKind::kKl;
  }
  static int inputs(int term) {
    const int table[] = {Rows::Term::kInputs...};
    return table[term];
  }
  template <typename C>
  static math::TermParams<C> params(const TermArgs& args) {
    using Make = math::TermParams<C> (*)(const double (&)[kMaxTermParams]);
    const Make table[] = {&math::term_params<typename Rows::Term, C>...};
    return table[args.term](args.param);
  }

  // In types alone, as what runs on the device may not call them.
  static constexpr bool taken(int i) { return i < kCount && (!only_kl || kKinds[i < kCount ? i : 0] == TermKind::kKl); }
  static constexpr int first_taken() {
    int i = 0;
    while (only_kl && i < kCount && kKinds[i] != TermKind::kKl) ++i;
    return i < kCount ? i : 0;  // a table without any calls none
  }
  template <int i>
  using Taken = std::bool_constant<taken(i)>;
  template <int i>
  using At = Which<typename std::tuple_element_t<(taken(i) ? i : first_taken()), std::tuple<Rows...>>::Term>;

  /// f(Which<the term>()).
  template <typename F>
  VF_DEVICE static auto call(int term, F&& f) {
    static_assert(kCount <= 64, "add cases");
    decltype(f(At<0>())) result{};
#define VF_CASE(i)                                      \
  case i:                                               \
    if constexpr (Taken<i>::value) result = f(At<i>()); \
    break;
#define VF_CASES(i) VF_CASE(i) VF_CASE(i + 1) VF_CASE(i + 2) VF_CASE(i + 3)
#define VF_MORE_CASES(i) VF_CASES(i) VF_CASES(i + 4) VF_CASES(i + 8) VF_CASES(i + 12)
    switch (term) { VF_MORE_CASES(0) VF_MORE_CASES(16) VF_MORE_CASES(32) VF_MORE_CASES(48) }
#undef VF_MORE_CASES
#undef VF_CASES
#undef VF_CASE
    return result;
  }
};

template <typename Skip, typename... Rows>
struct DropFirst {
  using All = TermList<false, Rows...>;
  using Kls = TermList<true, Rows...>;
};

#define VF_COMMA_TERM(name, kind, ...) , TermRow<kind, __VA_ARGS__>
namespace table {
using namespace generic::math;
using Rows = DropFirst<void VF_FOR_EACH_TERM(VF_COMMA_TERM)>;
}  // namespace table
#undef VF_COMMA_TERM
using AllTerms = table::Rows::All;
using KlTerms = table::Rows::Kls;

inline bool is_kl(int32_t term) { return AllTerms::is_kl(term); }

/// Whether a term takes hundreds of instructions: a kernel then has them once, not once for each element of a vector. Unrolled, these
/// terms would be most of the machine code, to save the moves of a loop that are few beside its body.
template <typename Term>
constexpr bool kIsLong = false;
template <math::ScaleForm form>
constexpr bool kIsLong<math::Kl<form, true>> = true;
template <math::ScaleForm form>
constexpr bool kIsLong<math::LogNormal<form>> = true;
template <math::ScaleForm form>
constexpr bool kIsLong<math::StudentT<form>> = true;
template <math::Space space>
constexpr bool kIsLong<math::Poisson<space>> = true;
template <math::Space space>
constexpr bool kIsLong<math::NegativeBinomial<space>> = true;
template <math::Space space>
constexpr bool kIsLong<math::ZeroInflatedNegativeBinomial<space>> = true;
template <>
inline constexpr bool kIsLong<math::DiscretizedLogisticTerm> = true;

/// One element: the value, and g df/din_i in d. A g of 0 makes it 0 even where the derivative is out of range.
template <typename Term, bool kGrad, typename C>
VF_DEVICE C evaluate_one(const math::TermParams<C>& params, C g, const C (&x)[kMaxTermInputs], C (&d)[kMaxTermInputs]) {
  C value;
  Term::eval(x, params, value, d);
  if (kGrad) {
#pragma unroll
    for (int i = 0; i < Term::kInputs; ++i) d[i] = math::chain<Term>(g, d[i]);
  }
  return value;
}

/// One run of a thread's elements: in[i][e] becomes g df/din_i, and the sum of f over from <= e < to is returned. kRolled has the term's
/// code once and hands it one element after the other.
template <typename Term, bool kGrad, bool kRolled = kIsLong<Term>, typename C, int kRows, int N>
VF_DEVICE C evaluate(const math::TermParams<C>& params, C g, int from, int to, C (&in)[kRows][N]) {
  C sum = C(0), x[kMaxTermInputs] = {}, d[kMaxTermInputs] = {};
  if constexpr (kRolled) {
#pragma unroll 1
    for (int e = 0; e < N; ++e) {
#pragma unroll
      for (int i = 0; i < Term::kInputs; ++i) x[i] = in[i][0];
      const C value = evaluate_one<Term, kGrad>(params, g, x, d);
      sum += e >= from && e < to ? value : C(0);
#pragma unroll
      for (int i = 0; i < Term::kInputs; ++i) {  // the next element comes first; N times, and all are where they were
#pragma unroll
        for (int j = 1; j < N; ++j) in[i][j - 1] = in[i][j];
        in[i][N - 1] = kGrad ? d[i] : x[i];
      }
    }
  } else {
#pragma unroll
    for (int e = 0; e < N; ++e) {
#pragma unroll
      for (int i = 0; i < Term::kInputs; ++i) x[i] = in[i][e];
      const C value = evaluate_one<Term, kGrad>(params, g, x, d);
      sum += e >= from && e < to ? value : C(0);
      if (kGrad) {
#pragma unroll
        for (int i = 0; i < Term::kInputs; ++i) in[i][e] = d[i];
      }
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

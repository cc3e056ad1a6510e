#include "term_names.h"

#include <c10/util/Exception.h>

#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "../term_table.h"

namespace vae_fast {
namespace ops {
namespace {

struct TermInfo {
  const char* name;
  TermKind kind;
  size_t inputs, params;
};

const std::vector<TermInfo>& terms() {
  using namespace generic::math;
  static const std::vector<TermInfo> all = {
#define VF_ROW(name, kind, ...) {name, kind, __VA_ARGS__::kInputs, __VA_ARGS__::kParams},
      VF_FOR_EACH_TERM(VF_ROW)
#undef VF_ROW
  };
  return all;
}

/// The name without bounds.
c10::string_view bare(c10::string_view name) { return name.substr(0, name.find('|')); }

/// Whether a term's last input, or a KL's second, is a scale.
bool has_scale(c10::string_view name) {
  const auto dot = name.find('.');
  const c10::string_view family = name.substr(0, dot), form = dot == c10::string_view::npos ? name : name.substr(dot + 1);
  if (family == "discretized_logistic") return true;
  for (const char* known : {"logvar", "log_std", "std", "var", "softplus"}) {
    if (form == known) return true;
  }
  return false;
}

const TermInfo& info(int32_t term) { return terms()[static_cast<size_t>(term)]; }

}  // namespace

Bound bound_of(c10::string_view whole) {
  static const char* const modes[] = {"clamp", "straight_through", "softclip", "tanh"};
  const c10::string_view name = bare(whole);
  Bound bound;
  if (name.size() == whole.size()) return bound;
  const std::string rest(whole.substr(name.size() + 1));
  const auto first = rest.find('|'), second = rest.find('|', first == std::string::npos ? first : first + 1);
  int32_t mode = 0;
  while (mode < 4 && rest.substr(0, first) != modes[mode]) ++mode;
  TORCH_CHECK_VALUE(second != std::string::npos && mode < 4 && has_scale(name), "term='", whole,
                    "': expected the name of a term with a scale, |, clamp, straight_through, softclip or tanh, |, low, |, high");
  bound.mode = static_cast<BoundMode>(mode + 1);
  bound.low = std::strtod(rest.c_str() + first + 1, nullptr);
  bound.high = std::strtod(rest.c_str() + second + 1, nullptr);
  TORCH_CHECK_VALUE(bound.low < bound.high && std::isfinite(bound.high - bound.low), "term='", whole,
                    "': expected finite bounds, low < high");
  const bool of_likelihood = name.find('.') != c10::string_view::npos && !is_kl(term_index(name));
  bound.input = of_likelihood || name == "discretized_logistic" ? static_cast<int32_t>(info(term_index(name)).inputs) - 1 : 1;
  return bound;
}

int32_t term_index(c10::string_view whole) {
  const c10::string_view name = bare(whole);
  const auto& all = terms();
  for (size_t i = 0; i < all.size(); ++i) {
    if (name == all[i].name) return static_cast<int32_t>(i);
  }
  std::string names;
  for (const auto& t : all) names += std::string(names.empty() ? "" : ", ") + t.name;
  TORCH_CHECK_VALUE(false, "term='", name, "': expected one of ", names);
}

void check_term(int32_t term, size_t inputs, size_t params) {
  const TermInfo& t = info(term);
  TORCH_CHECK_VALUE(inputs == t.inputs, "term '", t.name, "' takes ", t.inputs, " inputs, got ", inputs);
  TORCH_CHECK_VALUE(params == t.params, "term '", t.name, "' takes ", t.params, " parameters, got ", params);
}

bool is_kl(int32_t term) { return info(term).kind == TermKind::kKl; }
bool is_of_counts(int32_t term) { return info(term).kind == TermKind::kCounts; }

int32_t scale_form(c10::string_view whole) {
  const c10::string_view name = bare(whole);
  static const char* const forms[] = {"logvar", "log_std", "std", "var", "softplus"};
  const auto dot = name.find('.');
  const c10::string_view form = dot == c10::string_view::npos ? name : name.substr(dot + 1);
  for (int32_t i = 0; i < 5; ++i) {
    if (form == forms[i]) return i;
  }
  TORCH_CHECK_VALUE(false, "scale='", form, "': expected one of logvar, log_std, std, var, softplus");
}

}  // namespace ops
}  // namespace vae_fast

#include "term_names.h"

#include <c10/util/Exception.h>

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

const TermInfo& info(int32_t term) { return terms()[static_cast<size_t>(term)]; }

}  // namespace

int32_t term_index(c10::string_view name) {
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

int32_t scale_form(c10::string_view name) {
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

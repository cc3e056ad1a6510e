// Terms over groups of parameters, every row of csrc/group_table.h, against plain loops in double.
#include <algorithm>
#include <cmath>
#include <string>

#include "../../csrc/group_table.h"
#include "check.h"
#include "group_cases.h"
#include "implementations.h"

namespace native {

namespace {

using vae_fast::GroupArgs;

double softplus(double t) { return std::max(t, 0.0) + std::log1p(std::exp(-std::fabs(t))); }
double sigmoid(double t) { return t >= 0 ? 1 / (1 + std::exp(-t)) : std::exp(t) / (1 + std::exp(t)); }

struct GroupName {
  std::string name;
  int slots, data;
  bool thin() const { return name.find(".thin") != std::string::npos; }
};

std::vector<GroupName> group_names() {
  using namespace vae_fast::generic::math;
  return {
#define VF_ROW(name, ...) {name, __VA_ARGS__::kSlots, __VA_ARGS__::kData},
      VF_FOR_EACH_GROUP(VF_ROW)
#undef VF_ROW
  };
}

/// The log-probability of a bin and its derivatives; `unsure` where rounding may decide what is computed.
struct Bin {
  double value, d_loc, d_log_scale;
  bool unsure = false;

  Bin(double y, double loc, double log_scale, const GroupArgs& a, bool thin) {
    const double half = 1 / a.number[0], s = std::exp(log_scale), u = (y + half - loc) / s, v = (y - half - loc) / s, gap = 2 * half / s;
    const bool first = y<a.number[2], last = y> a.number[3];
    value = (last ? 0.0 : -softplus(-u)) - (first ? 0.0 : softplus(v)) + (first || last ? 0.0 : std::log(-std::expm1(-gap)));
    const double at_u = last ? 0.0 : sigmoid(-u), at_v = first ? 0.0 : sigmoid(v);
    d_loc = (at_v - at_u) / s;
    d_log_scale = v * at_v - u * at_u - (first || last ? 0.0 : gap / std::expm1(gap));
    if (!thin || first || last) return;
    const double limit = std::log(1e-5), t = (y - loc) / s;
    unsure = std::fabs(value - limit) < 0.02;
    if (value >= limit) return;
    value = t - log_scale - 2 * softplus(t) + std::log(2 * half);
    d_loc = std::tanh(t / 2) / s;
    d_log_scale = t * std::tanh(t / 2) - 1;
  }
};

/// One component's log-density of a cell, without its weight, and its derivatives.
struct Component {
  double value = 0.0, d[10] = {};
  double sharpest = 0.0;  // 1 / s: the rounding of y - loc is multiplied by that
  bool unsure = false;

  Component(const double (&x)[3], const double (&p)[10], const GroupArgs& a, const GroupName& name) {
    const double stretch = a.number[1], floor = a.number[4];
    double y[3] = {}, c[3] = {};
    for (int i = 0; i < name.data; ++i) y[i] = 2 * stretch * x[i] - 1;
    if (name.data == 3) c[0] = std::tanh(p[3]), c[1] = std::tanh(p[6]), c[2] = std::tanh(p[9]);
    const double loc[3] = {p[1], p[4] + c[0] * y[0], p[7] + c[1] * y[0] + c[2] * y[1]};
    const int at[3] = {1, 4, 7};
    double d_loc[3] = {};
    for (int i = 0; i < name.data; ++i) {
      const Bin bin(y[i], loc[i], std::max(p[at[i] + 1], floor), a, name.thin());
      value += bin.value;
      sharpest = std::max(sharpest, std::exp(-std::max(p[at[i] + 1], floor)));
      d[at[i]] = d_loc[i] = bin.d_loc;
      d[at[i] + 1] = p[at[i] + 1] <= floor ? 0.0 : bin.d_log_scale;
      unsure = unsure || bin.unsure;
    }
    if (name.data != 3) return;
    d[3] = (1 - c[0] * c[0]) * d_loc[1] * y[0];
    d[6] = (1 - c[1] * c[1]) * d_loc[2] * y[0];
    d[9] = (1 - c[2] * c[2]) * d_loc[2] * y[1];
  }
};

void check_group(Implementation& implementation, Random& random, int term, const GroupName& name) {
  Memory& memory = *implementation.memory;
  GroupArgs a;
  a.term = term;
  a.is_double = random.coin(0.3);
  a.rows = random.one_of<int64_t>({0, 1, 2, 5});
  a.components = random.one_of<int64_t>({1, 2, 3, 10, 17, 40, 300});
  Cells cells = draw_cells(random);
  if (a.components > 17) cells = random.coin() ? Cells{random.one_of<int64_t>({1, 7}), 1} : Cells{2, 9};
  a.outer = cells.outer, a.inner = cells.inner;
  const double levels = random.one_of({1.0, 31.0, 255.0}), half = 1 / levels;
  const bool bytes = random.coin();
  const double numbers[] = {levels, bytes ? 255.0 / levels : 1.0, name.thin() ? -0.999 : half - 1, name.thin() ? 0.99 : 1 - half, -7.0};
  std::copy(numbers, numbers + 5, a.number);

  const int64_t k_count = a.components, parameters = name.slots * k_count;
  Tensor x(memory,
           bytes         ? DType::kUInt8
           : a.is_double ? DType::kDouble
                         : DType::kFloat,
           a.rows, cells.count() * name.data, draw_layout(random));
  Tensor params(memory, draw_dtype(random, a.is_double), a.rows, cells.count() * parameters, draw_layout(random));
  x.fill([&] { return static_cast<double>(random.below(static_cast<int64_t>(levels) + 1)) / (bytes ? 255.0 : levels); });
  params.fill([&] { return random.coin(0.02) ? -8.0 : 0.7 * random.normal() - 0.5; });
  const bool none = k_count > 1 && random.coin(0.3);
  for (int64_t r = 0; none && r < a.rows; ++r) {  // components of weight zero, but for the first
    for (int64_t i = 0; i < cells.count() * (k_count - 1); ++i) {
      if (random.coin(0.2)) params.set(r, cells.at(i / (k_count - 1), parameters, i % (k_count - 1) + 1), -HUGE_VAL);
    }
  }
  params.upload();
  Tensor grad(memory, params.dtype(), a.rows, cells.count() * parameters);
  Tensor value(memory, a.is_double ? DType::kDouble : DType::kFloat, 1, a.rows);
  const Upstream upstream(random, memory, a.rows, a.is_double);
  const bool with_grad = random.coin(0.8), with_value = !with_grad || random.coin();
  a.x = x.stream(), a.params = params.stream();
  if (with_grad) a.grad = grad.stream();
  if (with_value) a.value = value.data();
  upstream.set(a.row_grad);
  implementation.group_terms(a);
  grad.download(), value.download();

  const double epsilon = a.is_double ? 1e-11 : 1e-5;
  const std::string label =
      text("%s: %ld rows of %ld x %ld cells, %ld components%s", name.name.c_str(), static_cast<long>(a.rows), static_cast<long>(a.outer),
           static_cast<long>(a.inner), static_cast<long>(k_count), a.is_double ? ", double" : "");
  for (int64_t r = 0; r < a.rows; ++r) {
    double total = 0.0, allowed = 0.0, g = upstream.of(r);
    bool unsure = false;
    for (int64_t c = 0; c < cells.count(); ++c) {
      std::vector<Component> component;
      std::vector<double> joint, weight;
      double top = -HUGE_VAL, weights = 0.0, sum = 0.0, far = 0.0;
      for (int64_t k = 0; k < k_count; ++k) {
        double data[3] = {}, p[10] = {};
        for (int j = 0; j < name.data; ++j) data[j] = x.value(r, cells.at(c, name.data, j));
        for (int j = 0; j < name.slots; ++j) p[j] = params.value(r, cells.at(c, parameters, j * k_count + k));
        component.emplace_back(data, p, a, name);
        weight.push_back(std::exp(p[0]));
        weights += weight.back();
        joint.push_back(p[0] + component.back().value);
        top = std::max(top, joint.back());
        if (std::isfinite(joint.back())) far = std::max(far, std::fabs(joint.back()) + 0.02 * component.back().sharpest);
      }
      bool here = false;
      for (const Component& one : component) here = here || one.unsure;
      for (const double l : joint) sum += std::exp(l - top);
      total += top + std::log(sum) - std::log(weights);
      allowed += epsilon * (far + 1);
      unsure = unsure || here;
      for (int64_t k = 0; with_grad && !here && k < k_count; ++k) {
        const size_t i = static_cast<size_t>(k);
        const double share = std::exp(joint[i] - top) / sum;
        for (int j = 0; j < name.slots; ++j) {
          const double want = g * (j == 0 ? share - weight[i] / weights : share * component[i].d[j]);
          const double got = grad.result(r, cells.at(c, parameters, j * k_count + k));
          const double tolerance =
              epsilon * (far + 1) * std::fabs(g) * (share * std::fabs(component[i].d[j]) + 1) + storing(params.dtype(), want);
          tally.check(close(got, want, tolerance),
                      text("%s: gradient of parameter %d of component %ld, row %ld, cell %ld: %.9g, expected %.9g", label.c_str(), j,
                           static_cast<long>(k), static_cast<long>(r), static_cast<long>(c), got, want));
        }
      }
    }
    if (!with_value || unsure) continue;
    tally.check(close(value.result(0, r), total, allowed),
                text("%s: value of row %ld: %.9g, expected %.9g", label.c_str(), static_cast<long>(r), value.result(0, r), total));
  }
}

}  // namespace

void check_groups(Implementation& implementation, int rounds) {
  const std::vector<GroupName> names = group_names();
  for (size_t term = 0; implementation.group_terms && term < names.size(); ++term) {
    for (int round = 0; round < rounds; ++round) {
      Random random(static_cast<uint64_t>(12000 + 1000 * term) + static_cast<uint64_t>(round));
      if (implementation.disturb) implementation.disturb(static_cast<unsigned>(round));
      check_group(implementation, random, static_cast<int>(term), names[term]);
    }
  }
}

}  // namespace native

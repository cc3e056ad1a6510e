// Terms over groups of parameters, every row of csrc/group_table.h and every kind of softmax, against plain loops in double.
#include <algorithm>
#include <cmath>
#include <string>

#include "../../csrc/group_table.h"
#include "check.h"
#include "implementations.h"

namespace native {

namespace {

using vae_fast::GroupArgs;
using vae_fast::SoftmaxArgs;
using vae_fast::Target;

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

/// Rows of what a kernel gets and gives: where cell c of a row has entry j of `entries`.
struct Cells {
  int64_t outer, inner;
  int64_t count() const { return outer * inner; }
  int64_t at(int64_t c, int64_t entries, int64_t j) const { return (c / inner * entries + j) * inner + c % inner; }
};

Cells draw_cells(Random& random) {
  return random.coin() ? Cells{random.one_of<int64_t>({1, 2, 65, 150}), 1}
                       : Cells{random.one_of<int64_t>({1, 3}), random.one_of<int64_t>({2, 17, 80, 300})};
}

DType draw_dtype(Random& random, bool is_double) {
  if (is_double) return DType::kDouble;
  return random.one_of({DType::kFloat, DType::kFloat, DType::kHalf, DType::kBFloat16});
}

Layout draw_layout(Random& random) {
  return random.one_of({Layout::kDense, Layout::kDense, Layout::kPadded, Layout::kOddPadded, Layout::kShifted, Layout::kSharedRow,
                        Layout::kTwoBatchDims, Layout::kBroadcastDim});
}

/// What storing in a data type may add to an error.
double storing(DType dtype, double v) {
  return dtype == DType::kHalf ? 6e-4 * std::fabs(v) + 1e-7 : dtype == DType::kBFloat16 ? 4e-3 * std::fabs(v) : 0.0;
}

/// An upstream gradient: one for all rows, or one each.
struct Upstream {
  double constant = 1.0;
  std::unique_ptr<Tensor> rows;

  Upstream(Random& random, Memory& memory, int64_t count, bool is_double) {
    if (random.coin(0.3)) constant = -0.75;
    if (random.coin(0.4)) return;
    rows = std::make_unique<Tensor>(memory, is_double ? DType::kDouble : DType::kFloat, 1, count);
    rows->fill([&] { return random.coin(0.2) ? 0.0 : random.normal(); });
  }
  void set(vae_fast::RowGrad& g) const {
    g.constant = constant;
    if (rows) g.data = rows->data(), g.stride = 1;
  }
  double of(int64_t row) const { return constant * (rows ? rows->value(0, row) : 1.0); }
};

void check_group(Implementation& implementation, Random& random, int term, const GroupName& name) {
  Memory& memory = *implementation.memory;
  GroupArgs a;
  a.term = term;
  a.is_double = random.coin(0.3);
  a.rows = random.one_of<int64_t>({0, 1, 2, 5});
  a.components = random.one_of<int64_t>({1, 2, 3, 10, 17});
  const Cells cells = draw_cells(random);
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
        top = std::max(top, joint.back()), far = std::max(far, std::fabs(joint.back()) + 0.02 * component.back().sharpest);
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

/// A kernel's array of numbers that are no tensor.
template <typename T>
struct Array {
  Block block;
  Array(Memory& memory, const std::vector<T>& values) : block(memory, values.size() * sizeof(T)) { block.write(values.data()); }
  const T* data() const { return static_cast<const T*>(block.data()); }
};

void check_softmax(Implementation& implementation, Random& random, Target target) {
  Memory& memory = *implementation.memory;
  SoftmaxArgs a;
  a.target = target;
  a.is_double = random.coin(0.3);
  a.rows = random.one_of<int64_t>({0, 1, 2, 5});
  a.k = random.one_of<int64_t>({1, 2, 5, 33, 256, 1100});
  const Cells cells = target == Target::kIndex ? draw_cells(random) : Cells{1, 1};
  a.outer = cells.outer, a.inner = cells.inner;
  while (a.k > 5 && cells.count() * a.k > 20000) a.k /= 4;
  const DType wide = a.is_double ? DType::kDouble : DType::kFloat;
  Tensor logits(memory, draw_dtype(random, a.is_double), a.rows, cells.count() * a.k, draw_layout(random));
  const double shift = random.one_of({0.0, 0.0, 1e4});
  const bool none = a.k > 1 && random.coin(0.3);
  logits.fill([&] { return none && random.coin(0.2) ? -HUGE_VAL : shift + 3.0 * random.normal(); });
  for (int64_t r = 0; r < a.rows; ++r) {  // a class at least
    for (int64_t c = 0; c < cells.count(); ++c) logits.set(r, cells.at(c, a.k, 0), shift + 1.0);
  }
  logits.upload();

  // dense counts of every cell: those of an index are a single one
  std::vector<double> counts(static_cast<size_t>(a.rows * cells.count() * a.k), 0.0);
  const auto count = [&](int64_t r, int64_t c, int64_t k) -> double& {
    return counts[static_cast<size_t>((r * cells.count() + c) * a.k + k)];
  };
  std::vector<int64_t> indices;
  Tensor x(memory, wide, a.rows, target == Target::kDense ? a.k : 0, draw_layout(random));
  std::vector<int64_t> begins{0}, columns;
  std::vector<double> stored;
  for (int64_t r = 0; r < a.rows; ++r) {
    for (int64_t c = 0; target == Target::kIndex && c < cells.count(); ++c) {
      const int64_t k = random.below(a.k);
      const bool possible = std::isfinite(logits.value(r, cells.at(c, a.k, k)));
      indices.push_back(possible ? k : 0);
      count(r, c, indices.back()) = 1.0;
    }
    for (int64_t k = 0; target == Target::kSparse && k < a.k; ++k) {
      if (!std::isfinite(logits.value(r, k)) || random.coin(0.7)) continue;
      count(r, 0, k) = static_cast<double>(random.below(4));  // a stored zero among them
      columns.push_back(k), stored.push_back(count(r, 0, k));
    }
    begins.push_back(static_cast<int64_t>(columns.size()));
  }
  if (target == Target::kDense) {
    x.fill([&] { return static_cast<double>(random.below(3)); });
    for (int64_t r = 0; r < a.rows; ++r) {
      for (int64_t k = 0; k < a.k; ++k) {
        if (!std::isfinite(logits.value(r, k))) x.set(r, k, 0.0);
      }
    }
    for (int64_t r = 0; r < a.rows; ++r) {
      for (int64_t k = 0; k < a.k; ++k) count(r, 0, k) = x.value(r, k);
    }
    x.upload();
    a.x = x.stream();
  }
  const Array<int64_t> index(memory, indices), begin(memory, begins), column(memory, columns);
  const Array<int32_t> short_begin(memory, {begins.begin(), begins.end()}), short_column(memory, {columns.begin(), columns.end()});
  Tensor values(memory, random.one_of({DType::kByte, DType::kHalf, wide}), 1, static_cast<int64_t>(stored.size()));
  size_t next = 0;
  values.fill([&] { return stored[next++]; });
  if (target == Target::kIndex) a.index = index.data();
  if (target == Target::kSparse) {
    a.sparse.wide = random.coin();
    a.sparse.offsets = a.sparse.wide ? static_cast<const void*>(begin.data()) : short_begin.data();
    a.sparse.columns = a.sparse.wide ? static_cast<const void*>(column.data()) : short_column.data();
    a.sparse.values = values.data();
    a.sparse.dtype = values.dtype();
  }

  Tensor grad(memory, logits.dtype(), a.rows, cells.count() * a.k), grad_x(memory, wide, a.rows, a.k), value(memory, wide, 1, a.rows);
  const Upstream upstream(random, memory, a.rows, a.is_double);
  const bool with_grad = random.coin(0.8), with_grad_x = target == Target::kDense && random.coin(),
             with_value = !with_grad || random.coin();
  a.logits = logits.stream();
  if (with_grad) a.grad = grad.stream();
  if (with_grad_x) a.grad_x = grad_x.stream();
  if (with_value) a.value = value.data();
  upstream.set(a.row_grad);
  implementation.softmax_terms(a);
  grad.download(), grad_x.download(), value.download();

  const double epsilon = a.is_double ? 1e-12 : 1e-6;
  const std::string label =
      text("softmax, target %d: %ld rows of %ld x %ld cells, %ld classes%s", static_cast<int>(target), static_cast<long>(a.rows),
           static_cast<long>(a.outer), static_cast<long>(a.inner), static_cast<long>(a.k), a.is_double ? ", double" : "");
  for (int64_t r = 0; r < a.rows; ++r) {
    double total = 0.0, magnitude = 0.0;
    const double g = upstream.of(r);
    for (int64_t c = 0; c < cells.count(); ++c) {
      double top = -HUGE_VAL, sum = 0.0, all = 0.0;
      for (int64_t k = 0; k < a.k; ++k) {
        top = std::max(top, logits.value(r, cells.at(c, a.k, k)));
        all += count(r, c, k);
      }
      for (int64_t k = 0; k < a.k; ++k) sum += std::exp(logits.value(r, cells.at(c, a.k, k)) - top);
      for (int64_t k = 0; k < a.k; ++k) {
        const double n = count(r, c, k), l = logits.value(r, cells.at(c, a.k, k)) - top - std::log(sum);
        if (n != 0.0) total += n * l;
        if (n != 0.0) magnitude += n * (std::fabs(l) + 1);
        if (with_grad) {
          const double want = g * (n - all * std::exp(l)), got = grad.result(r, cells.at(c, a.k, k));
          const double tolerance = epsilon * std::fabs(g) * (n + all * 20 * std::exp(l) + 1) + storing(logits.dtype(), want);
          tally.check(close(got, want, tolerance), text("%s: gradient of class %ld, row %ld, cell %ld: %.9g, expected %.9g", label.c_str(),
                                                        static_cast<long>(k), static_cast<long>(r), static_cast<long>(c), got, want));
        }
        if (with_grad_x) {
          const double want = g == 0.0 ? 0.0 : g * l, got = grad_x.result(r, k);
          tally.check(close(got, want, epsilon * (std::fabs(want) + std::fabs(g))),
                      text("%s: gradient of count %ld, row %ld: %.9g, expected %.9g", label.c_str(), static_cast<long>(k),
                           static_cast<long>(r), got, want));
        }
      }
    }
    if (!with_value) continue;
    tally.check(close(value.result(0, r), total, epsilon * (magnitude + 1)),
                text("%s: value of row %ld: %.9g, expected %.9g", label.c_str(), static_cast<long>(r), value.result(0, r), total));
  }
}

}  // namespace

void check_groups(Implementation& implementation, int rounds) {
  if (!implementation.group_terms || !implementation.softmax_terms) return;
  const std::vector<GroupName> names = group_names();
  for (size_t term = 0; term < names.size(); ++term) {
    for (int round = 0; round < rounds; ++round) {
      Random random(static_cast<uint64_t>(12000 + 1000 * term) + static_cast<uint64_t>(round));
      check_group(implementation, random, static_cast<int>(term), names[term]);
    }
  }
  for (const Target target : {Target::kIndex, Target::kDense, Target::kSparse}) {
    for (int round = 0; round < 2 * rounds; ++round) {
      Random random(static_cast<uint64_t>(20000 + 1000 * static_cast<int>(target) + round));
      check_softmax(implementation, random, target);
    }
  }
}

}  // namespace native

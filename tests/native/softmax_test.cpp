// Softmaxes over classes, of an index, of counts and of those that are stored, against plain loops in double.
#include <algorithm>
#include <cmath>
#include <string>

#include "check.h"
#include "group_cases.h"
#include "implementations.h"

namespace native {

namespace {

using vae_fast::SoftmaxArgs;
using vae_fast::Target;

/// A kernel's array of numbers that are no tensor.
template <typename T>
struct Array {
  Block block;
  Array(Memory& memory, const std::vector<T>& values) : block(memory, values.size() * sizeof(T)) { block.write(values.data()); }
  const T* data() const { return static_cast<const T*>(block.data()); }
};

/// What is wrong with what is given: nothing, or what CUDA's kernels have to bear, as they cannot refuse it.
enum class Damage { kNone, kPlaces, kOrder };

struct Shape {
  Target target;
  int64_t rows, k;
  Cells cells;
  bool is_double;
};

/// What is given of the classes, in a kernel's memory, and as counts of every class of every cell; NaN where a place is none.
struct Given {
  std::vector<double> counts;
  std::vector<bool> broken;  // cells with a place that is none
  std::vector<int64_t> indices, begins{0}, columns;
  std::unique_ptr<Tensor> x, values;
  std::unique_ptr<Array<int64_t>> index, begin, column;
  std::unique_ptr<Array<int32_t>> short_begin, short_column;
  int64_t cells, k;

  Given(Random& random, Memory& memory, const Shape& s, const Tensor& logits, bool impossible, Damage damage)
      : counts(static_cast<size_t>(s.rows * s.cells.count() * s.k), 0.0),
        broken(static_cast<size_t>(s.rows * s.cells.count()), false),
        cells(s.cells.count()),
        k(s.k) {
    const auto can_be = [&](int64_t r, int64_t c, int64_t at) {
      return impossible || std::isfinite(logits.value(r, s.cells.at(c, k, at)));
    };
    if (s.target == Target::kIndex) {
      for (int64_t r = 0; r < s.rows; ++r) {
        for (int64_t c = 0; c < cells; ++c) draw_index(random, r, c, can_be, damage);
      }
      index = std::make_unique<Array<int64_t>>(memory, indices);
    } else if (s.target == Target::kDense) {
      draw_counts(random, memory, s, can_be);
    } else {
      draw_stored(random, memory, s, can_be, damage);
    }
  }

  double& count(int64_t r, int64_t c, int64_t at) { return counts[static_cast<size_t>((r * cells + c) * k + at)]; }

  void set(SoftmaxArgs& a, bool wide) const {
    if (a.target == Target::kIndex) a.index = index->data();
    if (a.target == Target::kDense) a.x = x->stream();
    if (a.target != Target::kSparse) return;
    a.sparse.wide = wide;
    a.sparse.offsets = wide ? static_cast<const void*>(begin->data()) : short_begin->data();
    a.sparse.columns = wide ? static_cast<const void*>(column->data()) : short_column->data();
    a.sparse.values = values->data();
    a.sparse.dtype = values->dtype();
    a.sparse.entries = values->columns();
  }

 private:
  template <class Can>
  void draw_index(Random& random, int64_t r, int64_t c, const Can& can_be, Damage damage) {
    const int64_t at = random.below(k);
    indices.push_back(can_be(r, c, at) ? at : 0);
    count(r, c, indices.back()) = 1.0;
    if (damage == Damage::kNone || !random.coin(0.2)) return;
    indices.back() = random.one_of<int64_t>({-1, k, k + 1, int64_t{1} << 40, -(int64_t{1} << 62)});
    broken[static_cast<size_t>(r * cells + c)] = true;
  }

  template <class Can>
  void draw_counts(Random& random, Memory& memory, const Shape& s, const Can& can_be) {
    const Layout layout = random.coin(0.1) ? random.one_of({Layout::kSharedColumns, Layout::kScalar}) : draw_layout(random);
    const DType dtype = s.is_double ? DType::kDouble : random.one_of({DType::kFloat, DType::kFloat, DType::kHalf, DType::kBFloat16});
    x = std::make_unique<Tensor>(memory, dtype, s.rows, k, layout);
    const bool none = random.coin(0.1);
    x->fill([&] { return none ? 0.0 : static_cast<double>(random.below(3)); });
    for (int64_t r = 0; r < s.rows; ++r) {
      for (int64_t at = 0; at < k; ++at) {
        if (!can_be(r, 0, at)) x->set(r, at, 0.0);
      }
    }
    for (int64_t r = 0; r < s.rows; ++r) {
      for (int64_t at = 0; at < k; ++at) count(r, 0, at) = x->value(r, at);
    }
    x->upload();
  }

  template <class Can>
  void draw_stored(Random& random, Memory& memory, const Shape& s, const Can& can_be, Damage damage) {
    std::vector<double> stored;
    for (int64_t r = 0; r < s.rows; ++r) {
      const bool empty = random.coin(0.2);
      for (int64_t at = 0; at < k; ++at) {
        if (empty || !can_be(r, 0, at) || random.coin(0.7)) continue;
        const int times = random.coin(0.1) ? 3 : 1;  // of one column, too
        for (int i = 0; i < times; ++i) {
          stored.push_back(static_cast<double>(random.below(4)));  // a stored zero among them
          columns.push_back(at);
          count(r, 0, at) += stored.back();
        }
      }
      const size_t begins_at = static_cast<size_t>(begins.back());
      if (damage == Damage::kOrder) {  // columns and counts together
        for (size_t i = columns.size(); i > begins_at + 1; --i) {
          const size_t j = begins_at + static_cast<size_t>(random.below(static_cast<int64_t>(i - begins_at)));
          std::swap(columns[i - 1], columns[j]), std::swap(stored[i - 1], stored[j]);
        }
      }
      if (damage == Damage::kPlaces && columns.size() > begins_at && random.coin()) {
        columns[begins_at] = random.one_of<int64_t>({-1, k, k + 7, -2000000000, 2000000000});
        broken[static_cast<size_t>(r)] = true;
      }
      begins.push_back(static_cast<int64_t>(columns.size()));
    }
    if (damage == Damage::kPlaces && s.rows > 1 && random.coin(0.3)) {  // the first row ends where nothing does
      begins[1] = random.one_of<int64_t>({-3, begins.back() + 1, begins.back() + 100000});
      broken[0] = broken[1] = true;
    }
    begin = std::make_unique<Array<int64_t>>(memory, begins);
    column = std::make_unique<Array<int64_t>>(memory, columns);
    short_begin = std::make_unique<Array<int32_t>>(memory, std::vector<int32_t>(begins.begin(), begins.end()));
    short_column = std::make_unique<Array<int32_t>>(memory, std::vector<int32_t>(columns.begin(), columns.end()));
    const DType wide = s.is_double ? DType::kDouble : DType::kFloat;
    values = std::make_unique<Tensor>(memory, random.one_of({DType::kByte, DType::kHalf, wide}), 1, static_cast<int64_t>(stored.size()));
    size_t next = 0;
    values->fill([&] { return stored[next++]; });
  }
};

void check_one(Implementation& implementation, Random& random, const Shape& s, Damage damage) {
  Memory& memory = *implementation.memory;
  SoftmaxArgs a;
  a.target = s.target;
  a.is_double = s.is_double;
  a.rows = s.rows, a.k = s.k, a.outer = s.cells.outer, a.inner = s.cells.inner;
  const Cells& cells = s.cells;
  const DType wide = s.is_double ? DType::kDouble : DType::kFloat;
  const bool with_grad = random.coin(0.8), in_place = with_grad && random.coin(0.3);
  Tensor logits(memory, draw_dtype(random, s.is_double), s.rows, cells.count() * s.k, in_place ? Layout::kDense : draw_layout(random));
  const double shift = random.one_of({0.0, 0.0, 1e4});
  const bool none = s.k > 1 && random.coin(0.3), impossible = random.coin(0.1);
  logits.fill([&] { return none && random.coin(0.2) ? -HUGE_VAL : shift + 3.0 * random.normal(); });
  for (int64_t r = 0; r < s.rows; ++r) {  // a class at least
    for (int64_t c = 0; c < cells.count(); ++c) logits.set(r, cells.at(c, s.k, 0), shift + 1.0);
  }
  if (cells.count() > 0 && random.coin(0.1)) {  // and in some cells a number that is none
    for (int64_t r = 0; r < s.rows; ++r) {
      if (random.coin())
        logits.set(r, cells.at(random.below(cells.count()), s.k, random.below(s.k)), random.coin() ? std::nan("") : HUGE_VAL);
    }
  }
  logits.upload();
  Given given(random, memory, s, logits, impossible, damage);

  Tensor grad(memory, random.coin(0.2) ? wide : logits.dtype(), s.rows, cells.count() * s.k);
  const DType x_dtype = given.x && random.coin() ? given.x->dtype() : wide;
  Tensor grad_x(memory, x_dtype, s.rows, s.k), value(memory, wide, 1, s.rows);
  const Upstream upstream(random, memory, s.rows, s.is_double);
  const bool with_grad_x = s.target == Target::kDense && random.coin(), with_value = !with_grad || random.coin();
  a.logits = logits.stream();
  given.set(a, random.coin());
  if (with_grad) a.grad = in_place ? logits.stream() : grad.stream();
  if (with_grad_x) a.grad_x = grad_x.stream();
  if (with_value) a.value = value.data();
  upstream.set(a.row_grad);
  implementation.softmax_terms(a);
  Tensor& written = in_place ? logits : grad;
  written.download(), grad_x.download(), value.download();

  const double epsilon = s.is_double ? 1e-12 : 1e-6;
  const std::string label =
      text("%s softmax, target %d, damage %d: %ld rows of %ld x %ld cells, %ld classes%s%s", implementation.name.c_str(),
           static_cast<int>(s.target), static_cast<int>(damage), static_cast<long>(s.rows), static_cast<long>(s.cells.outer),
           static_cast<long>(s.cells.inner), static_cast<long>(s.k), s.is_double ? ", double" : "", in_place ? ", in place" : "");
  for (int64_t r = 0; r < s.rows; ++r) {
    double total = 0.0, magnitude = 0.0;
    const double g = upstream.of(r);
    for (int64_t c = 0; c < cells.count(); ++c) {
      const bool broken = given.broken[static_cast<size_t>(r * cells.count() + c)];
      double top = -HUGE_VAL, sum = 0.0, all = broken ? std::nan("") : 0.0;
      for (int64_t k = 0; k < s.k; ++k) {
        top = std::max(top, logits.value(r, cells.at(c, s.k, k)));
        all += given.count(r, c, k);
      }
      if (std::isinf(top)) top = 0.0;
      if (broken) total = all;
      for (int64_t k = 0; k < s.k; ++k) sum += std::exp(logits.value(r, cells.at(c, s.k, k)) - top);
      for (int64_t k = 0; k < s.k; ++k) {
        const double n = given.count(r, c, k), l = logits.value(r, cells.at(c, s.k, k)) - top - std::log(sum);
        if (n != 0.0) total += n * l;
        if (n != 0.0) magnitude += n * (std::fabs(l) + 1);
        if (with_grad) {
          const double want = g * (n - all * std::exp(l)), got = written.result(r, cells.at(c, s.k, k));
          const double tolerance = epsilon * std::fabs(g) * (n + all * 20 * std::exp(l) + 1) + storing(written.dtype(), want);
          tally.check(close(got, want, tolerance), text("%s: gradient of class %ld, row %ld, cell %ld: %.9g, expected %.9g", label.c_str(),
                                                        static_cast<long>(k), static_cast<long>(r), static_cast<long>(c), got, want));
        }
        if (with_grad_x) {
          const double want = g == 0.0 ? 0.0 : g * l, got = grad_x.result(r, k);
          const double tolerance = epsilon * (std::fabs(want) + std::fabs(g)) + storing(grad_x.dtype(), want);
          tally.check(close(got, want, tolerance), text("%s: gradient of count %ld, row %ld: %.9g, expected %.9g", label.c_str(),
                                                        static_cast<long>(k), static_cast<long>(r), got, want));
        }
      }
    }
    if (!with_value) continue;
    tally.check(close(value.result(0, r), total, epsilon * (magnitude + 1)),
                text("%s: value of row %ld: %.9g, expected %.9g", label.c_str(), static_cast<long>(r), value.result(0, r), total));
  }
}

}  // namespace

void check_softmax(Implementation& implementation, int rounds) {
  if (!implementation.softmax_terms) return;
  for (const Target target : {Target::kIndex, Target::kDense, Target::kSparse}) {
    for (int round = 0; round < 4 * rounds; ++round) {
      Random random(static_cast<uint64_t>(20000 + 1000 * static_cast<int>(target) + round));
      if (implementation.disturb) implementation.disturb(static_cast<unsigned>(round));
      Shape s{target, 0, 0, {1, 1}, random.coin(0.3)};
      s.rows = random.one_of<int64_t>({0, 1, 2, 5, 5, 40});
      s.k = random.one_of<int64_t>({1, 2, 3, 5, 16, 33, 64, 256, 784, 1100, 1101, 4000});
      if (target == Target::kIndex && random.coin(0.7)) s.cells = draw_cells(random);
      while (s.k > 5 && s.rows * s.cells.count() * s.k > 40000) s.k /= 4;
      Damage damage = Damage::kNone;  // the CPU's caller refuses it
      if (implementation.cuda && random.coin(0.3)) damage = random.coin() ? Damage::kPlaces : Damage::kOrder;
      check_one(implementation, random, s, damage);
    }
  }
  Random random(5);
  for (const Target target : {Target::kIndex, Target::kDense, Target::kSparse}) {
    for (const int64_t k : {20000, 20001}) {
      for (const bool is_double : {false, true}) check_one(implementation, random, {target, 2, k, {1, 1}, is_double}, Damage::kNone);
    }
    check_one(implementation, random, {target, 3001, 12, {1, 1}, false}, Damage::kNone);  // more than a grid of blocks holds at once
    check_one(implementation, random, {target, 0, 7, {1, 1}, false}, Damage::kNone);
  }
  check_one(implementation, random, {Target::kIndex, 3, 5, {0, 1}, false}, Damage::kNone);  // no cells: their sum is 0
  check_one(implementation, random, {Target::kIndex, 3, 300, {2, 70}, false}, Damage::kNone);
}

}  // namespace native

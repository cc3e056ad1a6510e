// Cases of a mixture, their tensors, and one component of one row in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "arrays.h"
#include "check.h"

namespace native {
namespace mixtures {

using vae_fast::MixtureArgs;
using vae_fast::MixtureBackwardArgs;
using vae_fast::MixtureForwardArgs;

enum class Scale { kDiagonal, kFull, kTied };

struct Case {
  int64_t rows = 1, components = 1, dims = 1;
  Scale scale = Scale::kDiagonal;
  bool is_double = false;
  DType dtype = DType::kFloat;
  Layout layout = Layout::kDense;
  double offset = 0.0;                                        // of all x and means
  bool far = false, dead = false, nan = false, none = false;  // rows out of reach, out of range, with a NaN; components of weight zero
  bool identical = false;                                     // all rows the same
  bool given = false;                                         // weights, not shift and total
  bool wide = false;                                          // constants far apart, in two parts
  bool scaled = false;                                        // x in units
  bool centred = false;                                       // a centre is known
  bool near = false;                                          // all means near it
  bool products = false;                                      // ... and tensor cores allowed
  bool by_row = false;                                        // every row has weights of its own
  bool constant_grad = false, with_x = true, with_sums = true, with_second = true;

  bool with_row_logits() const { return by_row && !given; }
  bool full() const { return scale != Scale::kDiagonal; }
  DType compute() const { return is_double ? DType::kDouble : DType::kFloat; }
  double unit() const { return is_double ? 2.3e-16 : 1.2e-7; }
  std::string name() const {
    static const char* const scales[] = {"diagonal", "full", "tied"};
    return text(" mixture %s%s dtype %d layout %d (%ld, %ld, %ld)%s%s%s%s%s%s%s%s%s%s%s%s%s%s%s", scales[static_cast<int>(scale)],
                is_double ? " double" : "", static_cast<int>(dtype), static_cast<int>(layout), static_cast<long>(rows),
                static_cast<long>(components), static_cast<long>(dims), far ? " far" : "", dead ? " dead" : "", nan ? " nan" : "",
                none ? " none" : "", identical ? " identical" : "", given ? " given" : "", wide ? " wide" : "", scaled ? " scaled" : "",
                centred ? " centred" : "", near ? " near" : "", products ? " products" : "", by_row ? " by row" : "", with_x ? "" : " no x",
                with_sums ? "" : " no sums", with_second ? "" : " no second");
  }
};

enum class Kind : char { kNear, kFar, kDead, kNan };

/// Inputs, and the outputs of an implementation.
struct Data {
  const Case& c;
  std::vector<Kind> kind;
  Tensor x, means, scale, transposed, constant, constant_low, x_scale, centre, baseline, grad, weights;
  Tensor row_weights;
  Tensor log_prob, shift, total, q;      // forward
  Tensor grad_x, counts, first, second;  // backward
  Tensor row_counts, row_logits;         // the same of the rows' own weights: the CPU's, CUDA's
  double grad_constant = 1.0;
  int64_t matrices;

  Data(const Case& given, Memory& memory, Random& random, DType grad_dtype, Layout grad_layout)
      : c(given),
        kind(static_cast<size_t>(c.rows), Kind::kNear),
        x(memory, c.dtype, c.rows, c.dims, c.layout),
        means(memory, c.compute(), c.components, c.dims),
        scale(memory, c.compute(), of_scale(c), c.dims),
        transposed(memory, c.compute(), of_scale(c), c.dims),
        constant(memory, c.compute(), 1, c.components),
        constant_low(memory, c.compute(), 1, c.components),
        x_scale(memory, c.compute(), 1, c.dims),
        centre(memory, DType::kFloat, 1, c.dims),
        baseline(memory, DType::kDouble, 1, 1),
        grad(memory, c.compute(), 1, 2 * c.rows + 1),
        weights(memory, c.compute(), c.rows, c.components),
        row_weights(memory, c.compute(), c.rows, c.components),
        log_prob(memory, c.compute(), 1, c.rows),
        shift(memory, c.compute(), 1, c.rows),
        total(memory, c.compute(), 1, c.rows),
        q(memory, c.compute(), c.rows, c.components),
        grad_x(memory, grad_dtype, c.rows, c.dims, grad_layout),
        counts(memory, DType::kDouble, 1, c.components),
        first(memory, DType::kDouble, c.components, c.dims),
        second(memory, DType::kDouble, of_scale(c), c.dims),
        row_counts(memory, DType::kDouble, c.rows, c.components),
        row_logits(memory, c.compute(), c.rows, c.components),
        matrices(c.scale == Scale::kFull ? c.components : 1) {
    x_scale.fill([&] { return c.scaled ? std::ldexp(1.0, static_cast<int>(random.below(5)) - 2) : 1.0; });
    constant_low.fill([&] { return c.wide ? random.uniform(-1e-4, 1e-4) : 0.0; });
    x.fill([&] { return c.offset + 2.0 * random.normal(); });
    means.fill([&] { return c.offset + (c.near ? 0.5 : 2.0) * random.normal(); });
    constant.fill([&] { return c.none && random.coin(0.3) ? -HUGE_VAL : (c.wide ? 3000.0 : 3.0) * random.normal(); });
    if (c.none && c.components > 1) constant.set(0, 0, 0.5), constant.set(0, c.components - 1, -HUGE_VAL);
    baseline.fill([&] { return 10.0 * random.normal(); });
    grad.fill([&] { return random.normal(); });
    weights.fill([&] { return random.coin(0.2) ? 0.0 : random.uniform(-0.5, 1.0); });
    const double off = 0.3 / std::sqrt(static_cast<double>(std::max<int64_t>(c.dims, 1)));
    scale.fill([&] { return std::exp(random.uniform(-1.0, 0.7)); });
    for (int64_t r = 0; c.full() && r < scale.rows(); ++r) {
      for (int64_t e = 0; e < c.dims; ++e) {
        const int64_t d = r % c.dims;
        if (e != d) scale.set(r, e, e < d ? 0.0 : off * random.normal());
      }
    }
    for (int64_t r = 0; c.full() && r < scale.rows(); ++r) {
      for (int64_t e = 0; e < c.dims; ++e) transposed.set(r - r % c.dims + e, r % c.dims, scale.value(r, e));
    }
    const bool dense = c.layout <= Layout::kShifted || c.layout == Layout::kTwoBatchDims;
    if (c.identical && dense) {
      for (int64_t n = 0; n < c.rows; ++n) {
        for (int64_t d = 0; d < c.dims; ++d) x.set(n, d, means.value(0, d));
      }
    }
    const bool wide = c.dtype == DType::kFloat || c.dtype == DType::kDouble || c.dtype == DType::kBFloat16;
    for (int64_t n = 0; n < c.rows && dense && wide; ++n) {
      if (!random.coin(0.2)) continue;
      Kind& k = kind[static_cast<size_t>(n)];
      const int which = static_cast<int>(random.below(3));
      k = c.far && which == 0 ? Kind::kFar : c.dead && which == 1 ? Kind::kDead : c.nan && which == 2 ? Kind::kNan : Kind::kNear;
      const double most = c.is_double && c.dtype == DType::kDouble ? 1.7e308 : 3.3e38;
      for (int64_t d = 0; d < c.dims; ++d) {
        if (k == Kind::kFar) x.set(n, d, random.coin() ? 1e15 : -1e15);
        if (k == Kind::kDead) x.set(n, d, random.coin() ? most : -most);
      }
      if (k == Kind::kNan) x.set(n, random.below(c.dims), std::nan(""));
      // Which component a row out of reach goes to is left to rounding: it must not matter.
      if (k == Kind::kFar) grad.set(0, 2 * n, 0.0);
      if (k == Kind::kDead) {
        for (int64_t j = 0; j < c.components; ++j) weights.set(n, j, 0.0);
      }
      // ... in float; a double has room for the squares of floats
      if (k == Kind::kDead && c.is_double && most < 1e300) {
        k = Kind::kFar;
        grad.set(0, 2 * n, 0.0);
      }
    }
    if (c.constant_grad) grad_constant = 0.75;
    for (int64_t n = 0; c.by_row && n < c.rows; ++n) {  // normalised, as the kernels get them
      double sum = 0.0;
      for (int64_t j = 0; j < c.components; ++j) {
        row_weights.set(n, j, c.none && j > 0 && random.coin(0.3) ? -HUGE_VAL : 2.0 * random.normal());
        sum += std::exp(row_weights.value(n, j));
      }
      for (int64_t j = 0; j < c.components; ++j) row_weights.set(n, j, row_weights.value(n, j) - std::log(sum));
    }
    upload();
  }
  /// After changes; the centre becomes the mean of the means.
  void upload() {
    for (int64_t d = 0; d < c.dims; ++d) {
      double sum = 0.0;
      for (int64_t k = 0; k < c.components; ++k) sum += means.value(k, d);
      centre.set(0, d, sum / static_cast<double>(c.components));
    }
    for (Tensor* t : {&x, &means, &scale, &transposed, &constant, &centre, &baseline, &grad, &weights, &row_weights}) t->upload();
  }
  static int64_t of_scale(const Case& c) {
    return c.scale == Scale::kDiagonal ? c.components : c.scale == Scale::kFull ? c.components * c.dims : c.dims;
  }

  MixtureArgs args() const {
    MixtureArgs m;
    m.rows = c.rows, m.components = c.components, m.dims = c.dims;
    m.is_double = c.is_double, m.full = c.full();
    m.x = x.stream();
    m.constant = constant.data(), m.means = means.data(), m.scale = scale.data();
    if (c.full()) m.transposed = transposed.data();
    if (c.wide) m.constant_low = constant_low.data();
    if (c.scaled) m.x_scale = x_scale.data();
    if (c.centred || c.products) m.centre = static_cast<const float*>(centre.data());
    m.products = c.products;
    if (c.by_row) m.row_weights = row_weights.data();
    m.factor_stride = c.scale == Scale::kFull ? c.dims * c.dims : 0;
    m.baseline = static_cast<const double*>(baseline.data());
    return m;
  }
  MixtureBackwardArgs backward_args(bool cuda = false) const {
    MixtureBackwardArgs b;
    b.mixture = args();
    if (c.given) {
      b.weights = weights.data();
    } else {
      b.shift = shift.data(), b.total = total.data();
      b.grad.constant = grad_constant;
      if (!c.constant_grad) b.grad.data = grad.data(), b.grad.stride = 2;
    }
    if (c.with_x) b.grad_x = grad_x.stream();
    if (c.with_sums) b.counts = static_cast<double*>(counts.data()), b.first = static_cast<double*>(first.data());
    if (c.with_sums && c.with_second) b.second = static_cast<double*>(second.data());
    if (c.with_row_logits() && cuda) b.grad_row_logits = row_logits.data();
    if (c.with_row_logits() && !cuda) b.row_counts = static_cast<double*>(row_counts.data());
    return b;
  }
  double upstream(int64_t n) const { return c.constant_grad ? grad_constant : grad_constant * grad.value(0, 2 * n); }
};

/// x or a mean as it is read.
inline double bounded(double v, bool is_double) {
  const double far = farthest(is_double);
  return v > far ? far : v < -far ? -far : v;
}

/// t and u of one row and component, and l with what rounding may do to it.
struct Joint {
  std::vector<double> t, u;
  double l = 0.0, error = 0.0;

  Joint(const Data& data, int64_t n, int64_t k) : t(static_cast<size_t>(data.c.dims)), u(t) {
    const Case& c = data.c;
    const double unit = c.unit();
    double sum = 0.0;
    for (int64_t d = 0; d < c.dims; ++d)
      t[static_cast<size_t>(d)] = bounded(bounded(data.x.value(n, d), c.is_double) * data.x_scale.value(0, d), c.is_double) -
                                  bounded(data.means.value(k, d), c.is_double);
    for (int64_t e = 0; e < c.dims; ++e) {
      double v = 0.0, magnitude = 0.0;
      if (!c.full()) {
        v = t[static_cast<size_t>(e)] * data.scale.value(k, e);
        magnitude = std::fabs(v);
      } else {
        const int64_t row = data.matrices == 1 ? 0 : k * c.dims;
        for (int64_t d = 0; d <= e; ++d) {
          const double product = t[static_cast<size_t>(d)] * data.scale.value(row + d, e);
          v += product;
          magnitude += std::fabs(product) * (4.0 + std::sqrt(static_cast<double>(c.dims)));
        }
      }
      u[static_cast<size_t>(e)] = v;
      sum += v * v - 1.0;
      error += 4.0 * unit * (std::fabs(v) * (magnitude + std::fabs(v)) + 1.0);
      if (c.products) {  // a dozen sums cut off at the largest addend's 24 bits
        const double m = (data.means.value(k, e) - data.centre.value(0, e)) * data.scale.value(k, e);
        error += 12.0 * unit * ((m + v) * (m + v) + m * m);
      }
    }
    const double constant = data.constant.value(0, k) + data.constant_low.value(0, k) + (c.by_row ? data.row_weights.value(n, k) : 0.0);
    l = constant - 0.5 * sum;
    error += unit * (8.0 + 2.0 * std::fabs(sum));
    if (!c.is_double && l < -1.7e38) l = -HUGE_VAL;
  }
};

}  // namespace mixtures
}  // namespace native

// The quadratic of a mixture multiplied out on tensor cores: how far off its three products are, and that everything out of their range is
// computed as by default.
#include <algorithm>
#include <cmath>
#include <functional>

#include "check.h"
#include "implementations.h"
#include "mixture_cases.h"

namespace native {

namespace {

using namespace mixtures;

/// The largest differences from the truth, in nats of log p and in responsibilities.
struct Errors {
  double log_prob = 0.0, responsibility = 0.0;
};

/// log sum e^l and the responsibilities of a row.
struct Row {
  double log_sum;
  std::vector<double> q;
  explicit Row(const std::vector<double>& l) {
    const double top = *std::max_element(l.begin(), l.end());
    double sum = 0.0;
    for (const double v : l) sum += std::exp(v - top);
    log_sum = top + std::log(sum);
    for (const double v : l) q.push_back(std::exp(v - log_sum));
  }
};

std::vector<double> joints(const Data& data, int64_t n) {
  std::vector<double> l;
  for (int64_t k = 0; k < data.c.components; ++k) l.push_back(Joint(data, n, k).l);
  return l;
}

/// What a kernel with one product of TF32 numbers would find at best: nothing rounded but the operands.
std::vector<double> single_joints(const Data& data, int64_t n) {
  const auto tf32 = [](double v) { return round_to(v, 11, -126); };
  std::vector<double> l;
  for (int64_t k = 0; k < data.c.components; ++k) {
    double sum = data.constant.value(0, k);
    for (int64_t d = 0; d < data.c.dims; ++d) {
      const double y = data.x.value(n, d) - data.centre.value(0, d), m = data.means.value(k, d) - data.centre.value(0, d);
      const double t = data.scale.value(k, d) * data.scale.value(k, d);
      sum += tf32(y * y) * tf32(-0.5 * t) + tf32(y) * tf32(m * t) + 0.5 * (1.0 - m * m * t);
    }
    l.push_back(sum);
  }
  return l;
}

struct Setting {
  const char* what;
  int64_t dims;
  double offset, spread;  // of the means, whose standard deviations in all dimensions together are `spread`
  bool pairs;             // components two by two near each other
};

/// Draws each row from one of the components.
void draw(Data& data, Random& random, const Setting& setting) {
  const double root = std::sqrt(static_cast<double>(setting.dims));
  data.means.fill([&] { return setting.offset + setting.spread / root * random.normal(); });
  data.scale.fill([&] { return std::exp(-0.2 - 0.7 / root * random.normal()); });
  for (int64_t k = 1; setting.pairs && k < data.c.components; k += 2) {
    for (int64_t d = 0; d < setting.dims; ++d) data.means.set(k, d, data.means.value(k - 1, d) + 2.0 / root * random.normal());
  }
  for (int64_t n = 0; n < data.c.rows; ++n) {
    const int64_t k = random.below(data.c.components);
    for (int64_t d = 0; d < setting.dims; ++d) data.x.set(n, d, data.means.value(k, d) + random.normal() / data.scale.value(k, d));
  }
  data.baseline.set(0, 0, -0.5 * static_cast<double>(setting.dims) * (1.0 + std::log(2.0 * 3.14159265358979323846)));
  data.upload();
}

void forward(Implementation& implementation, Data& data, bool products) {
  MixtureForwardArgs f;
  f.mixture = data.args();
  if (!products) f.mixture.centre = nullptr;
  f.log_prob = data.log_prob.data(), f.shift = data.shift.data(), f.total = data.total.data(), f.responsibilities = data.q.data();
  implementation.mixture(f);
  for (Tensor* t : {&data.log_prob, &data.shift, &data.total, &data.q}) t->download();
}

Errors errors(const Data& data) {
  Errors e;
  for (int64_t n = 0; n < data.c.rows; ++n) {
    const Row truth(joints(data, n));
    e.log_prob = std::fmax(e.log_prob, std::fabs(data.log_prob.result(0, n) - (data.baseline.value(0, 0) + truth.log_sum)));
    for (int64_t k = 0; k < data.c.components; ++k)
      e.responsibility = std::fmax(e.responsibility, std::fabs(data.q.result(n, k) - truth.q[static_cast<size_t>(k)]));
  }
  return e;
}

Errors single_errors(const Data& data) {
  Errors e;
  for (int64_t n = 0; n < data.c.rows; ++n) {
    const Row truth(joints(data, n)), found(single_joints(data, n));
    e.log_prob = std::fmax(e.log_prob, std::fabs(found.log_sum - truth.log_sum));
    for (size_t k = 0; k < truth.q.size(); ++k) e.responsibility = std::fmax(e.responsibility, std::fabs(found.q[k] - truth.q[k]));
  }
  return e;
}

void check_error(Implementation& implementation, const Setting& setting) {
  Case c;
  c.rows = 200, c.components = 24, c.dims = setting.dims, c.products = true;
  Random random(11);
  Data data(c, *implementation.memory, random, DType::kFloat, Layout::kDense);
  draw(data, random, setting);
  double distance = 0.0;  // of a row from the centre, in its component's standard deviations: what is lost goes with its square
  for (int64_t n = 0; n < c.rows; ++n) {
    const std::vector<double> l = joints(data, n);
    const int64_t k = std::max_element(l.begin(), l.end()) - l.begin();
    double sum = 0.0;
    for (int64_t d = 0; d < c.dims; ++d) {
      const double u = (data.x.value(n, d) - data.centre.value(0, d)) * data.scale.value(k, d);
      sum += u * u;
    }
    distance = std::fmax(distance, std::sqrt(sum));
  }
  forward(implementation, data, false);
  const Errors centred = errors(data);
  forward(implementation, data, true);
  const Errors three = errors(data), one = single_errors(data);
  std::printf("%-34s  %8.3g  %8.2g %8.2g  %8.2g %8.2g  %8.2g %8.2g\n", setting.what, distance, centred.log_prob, centred.responsibility,
              three.log_prob, three.responsibility, one.log_prob, one.responsibility);
  const std::string where = implementation.name + " three TF32 products, " + setting.what;
  const double most = 2e-7 * distance * distance;
  tally.check(three.log_prob <= most, where + text(": off by %.3g nats, expected at most %.3g", three.log_prob, most));
  tally.check(50.0 * three.log_prob < one.log_prob,
              where + text(": off by %.3g nats, a single product by %.3g", three.log_prob, one.log_prob));
}

/// What is out of the products' range, in one row or in the parameters, is computed as by default.
void check_range(Implementation& implementation) {
  using Change = std::function<void(Data&)>;
  const std::pair<const char*, Change> changes[] = {
      {"a far row", [](Data& d) { d.x.set(70, 2, 3e7); }},
      {"an infinite row", [](Data& d) { d.x.set(70, 2, HUGE_VAL); }},
      {"a row of NaN", [](Data& d) { d.x.set(70, 2, std::nan("")); }},
      {"a far mean", [](Data& d) { d.means.set(70, 2, -1e30); }},
      {"an infinite mean", [](Data& d) { d.means.set(70, 2, HUGE_VAL); }},
      {"a mean of NaN", [](Data& d) { d.means.set(70, 2, std::nan("")); }},
      {"a narrow component", [](Data& d) { d.scale.set(70, 2, 1e25); }},
      {"a component of NaN", [](Data& d) { d.scale.set(70, 2, std::nan("")); }},
  };
  for (const auto& [what, change] : changes) {
    Case c;
    c.rows = 150, c.components = 80, c.dims = 5, c.products = true;
    Random random(3), again(3);
    Data data(c, *implementation.memory, random, DType::kFloat, Layout::kDense);
    Data centred(c, *implementation.memory, again, DType::kFloat, Layout::kDense);
    for (Data* d : {&data, &centred}) change(*d), d->upload();
    data.centre.fill([] { return 0.0; });  // as of a component of weight zero: it does not move the centre
    forward(implementation, data, true);
    forward(implementation, centred, false);
    Tally seen;
    for (int64_t n = 0; n < 128; ++n) {  // the tile of that row
      const double want = centred.log_prob.result(0, n);
      seen.passed += close(data.log_prob.result(0, n), want, 4e-7 * std::fabs(want));
      for (int64_t k = 0; k < c.components; ++k) seen.passed += close(data.q.result(n, k), centred.q.result(n, k), 2e-6);
    }
    tally.check(seen.passed == 128 * (1 + c.components), implementation.name + " three TF32 products, " + what + ": not as by default");
  }
}

/// So are the sums that given responsibilities weigh, and the gradient of x; what is no component's may be infinitely far from it.
void check_range_of_sums(Implementation& implementation) {
  const std::pair<const char*, std::function<void(Data&)>> changes[] = {
      {"a far row", [](Data& d) { d.x.set(170, 2, 3e7); }},
      {"an infinite row", [](Data& d) { d.x.set(170, 2, HUGE_VAL); }},
      {"a far row that no component explains",
       [](Data& d) {
         d.x.set(170, 2, 1e38);
         for (int64_t k = 0; k < d.c.components; ++k) d.weights.set(170, k, 0.0), d.scale.set(k, 2, 1e6);
       }},
      {"a large weight", [](Data& d) { d.weights.set(170, 30, 1e20); }},
      {"a weight of NaN", [](Data& d) { d.weights.set(170, 30, std::nan("")); }},
      {"a far mean", [](Data& d) { d.means.set(30, 2, -1e12); }},
      {"a narrow component", [](Data& d) { d.scale.set(30, 2, 1e9); }},
      {"a wide component", [](Data& d) { d.scale.set(30, 2, 1e-20); }},
  };
  for (const auto& [what, change] : changes) {
    Case c;
    c.rows = 300, c.components = 40, c.dims = 40, c.products = c.given = true;
    Random random(4), again(4);
    Data data(c, *implementation.memory, random, DType::kFloat, Layout::kDense);
    Data plain(c, *implementation.memory, again, DType::kFloat, Layout::kDense);
    for (Data* d : {&data, &plain}) {
      change(*d), d->upload();
      d->centre.fill([] { return 0.0; });
      d->centre.upload();
      MixtureBackwardArgs b = d->backward_args();
      b.mixture.products = d == &data;
      implementation.mixture_backward(b);
      for (Tensor* t : {&d->counts, &d->first, &d->second, &d->grad_x}) t->download();
    }
    int64_t wrong = 0;
    const auto compare = [&](const Tensor& found, const Tensor& wanted, int64_t rows, int64_t columns) {
      for (int64_t column = 0; column < columns; ++column) {
        double most = 0.0;  // of a dimension: they differ in size
        for (int64_t row = 0; row < rows; ++row) {
          const double v = std::fabs(wanted.result(row, column));
          if (v < HUGE_VAL) most = std::fmax(most, v);
        }
        for (int64_t row = 0; row < rows; ++row) wrong += !close(found.result(row, column), wanted.result(row, column), 3e-6 * most);
      }
    };
    compare(data.counts, plain.counts, 1, c.components);
    compare(data.first, plain.first, c.components, c.dims);
    compare(data.second, plain.second, c.components, c.dims);
    compare(data.grad_x, plain.grad_x, c.rows, c.dims);
    tally.check(wrong == 0, implementation.name + " sums of three TF32 products, " + what + text(": %ld not as by default", long(wrong)));
  }
}

/// The responsibilities that the backward pass recomputes are those of the forward pass: they sum to one.
void check_sums(Implementation& implementation) {
  Case c;
  c.rows = 3000, c.components = 20, c.dims = 3, c.products = true, c.constant_grad = true;  // the backward pass in several lots
  Random random(5);
  Data data(c, *implementation.memory, random, DType::kFloat, Layout::kDense);
  draw(data, random, {"", 3, 0.0, 2000.0, false});
  data.x.set(1500, 0, 1e9);
  data.x.upload();
  forward(implementation, data, true);
  implementation.mixture_backward(data.backward_args());
  data.counts.download();
  double sum = 0.0;
  for (int64_t k = 0; k < c.components; ++k) sum += data.counts.result(0, k);
  const double want = data.grad_constant * static_cast<double>(c.rows);
  tally.check(close(sum, want, 1e-6 * want), implementation.name + text(" three TF32 products: weights sum to %.9g, not %.9g", sum, want));
}

/// Where there are no tensor cores nothing changes.
void check_ignored(Implementation& implementation) {
  Case c;
  c.rows = 150, c.components = 20, c.dims = 5, c.products = true;
  Random random(2);
  Data data(c, *implementation.memory, random, DType::kFloat, Layout::kDense);
  forward(implementation, data, true);
  const auto log_prob = data.log_prob.image(), q = data.q.image();
  forward(implementation, data, false);
  tally.check(data.log_prob.image() == log_prob && data.q.image() == q, implementation.name + ": the centre changes results");
}

}  // namespace

void check_mixture_products(Implementation& implementation) {
  if (!implementation.mixture || !implementation.mixture_backward) return;
  if (!implementation.cuda) return check_ignored(implementation);
  std::printf("%-34s  %8s  %17s  %17s  %17s\n", implementation.name.c_str(), "distance", "centred", "tf32x3", "one product");
  for (const Setting& setting :
       {Setting{"D=2", 2, 0.0, 2.0, false}, Setting{"D=16, all offset by 100", 16, 100.0, 2.0, false},
        Setting{"D=128", 128, 0.0, 2.0, false}, Setting{"D=784, all offset by 1000", 784, 1000.0, 2.0, false},
        Setting{"D=16, pairs of means 10 apart", 16, 0.0, 10.0, true}, Setting{"D=16, pairs of means 100 apart", 16, 0.0, 100.0, true},
        Setting{"D=16, pairs of means 1000 apart", 16, 0.0, 1000.0, true}}) {
    check_error(implementation, setting);
  }
  check_range(implementation);
  check_range_of_sums(implementation);
  check_sums(implementation);
}

}  // namespace native

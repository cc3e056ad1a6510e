// Mixtures of Gaussians and the sums of their backward pass, against plain loops in double.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "implementations.h"
#include "mixture_cases.h"

namespace native {

namespace {

using namespace mixtures;

/// The first difference found, and how many there are.
struct Differences {
  int count = 0;
  std::string first;
  void compare(const char* what, int64_t r, int64_t i, double got, double want, double tolerance) {
    if (close(got, want, tolerance)) return;
    if (++count == 1)
      first = text(" %s (%ld, %ld): %.9g, not %.9g (+- %.3g)", what, static_cast<long>(r), static_cast<long>(i), got, want, tolerance);
  }
};

/// A sum over rows and what rounding may do to it.
struct Sum {
  double value = 0.0, error = 0.0;
  void add(double q, double q_error, double f, double f_error) {
    value += q * f;
    error += std::fabs(q) * f_error + q_error * (std::fabs(f) + f_error);
  }
};

class Run {
 public:
  Run(Implementation& implementation, Random& random, const Case& given) : c(given), where(implementation.name + c.name()) {
    const DType grad_dtype = c.dtype == DType::kUInt8 || c.dtype == DType::kBool ? c.compute() : c.dtype;
    const Layout grad_layout = random.one_of({Layout::kDense, Layout::kPadded, Layout::kOddPadded, Layout::kShifted});
    const uint64_t seed = random.engine();
    Random draw(seed), again(seed);
    Data data(c, *implementation.memory, draw, grad_dtype, grad_layout);
    run(implementation, data);
    check(data);
    if (implementation.disturb) implementation.disturb(static_cast<unsigned>(random.below(100)));
    Data other(c, *implementation.memory, again, grad_dtype, grad_layout);
    run(implementation, other);
    bool same = data.log_prob.image() == other.log_prob.image() && data.q.image() == other.q.image() &&
                data.grad_x.image() == other.grad_x.image() && data.counts.image() == other.counts.image() &&
                data.first.image() == other.first.image() && data.second.image() == other.second.image() &&
                data.row_counts.image() == other.row_counts.image() && data.row_logits.image() == other.row_logits.image();
    tally.check(same || c.nan, where + ": another order of threads, another result");
  }

 private:
  const Case& c;
  std::string where;
  bool cuda = false;

  void run(Implementation& implementation, Data& data) {
    MixtureForwardArgs f;
    f.mixture = data.args();
    f.log_prob = data.log_prob.data(), f.shift = data.shift.data(), f.total = data.total.data(), f.responsibilities = data.q.data();
    implementation.mixture(f);
    cuda = implementation.cuda;
    implementation.mixture_backward(data.backward_args(cuda));
    for (Tensor* t : {&data.log_prob, &data.shift, &data.total, &data.q, &data.grad_x, &data.counts, &data.first, &data.second,
                      &data.row_counts, &data.row_logits})
      t->download();
  }

  void check(const Data& data) {
    Differences forward, backward;
    const double unit = c.unit();
    const size_t components = static_cast<size_t>(c.components), dims = static_cast<size_t>(c.dims);
    std::vector<Sum> counts(components), first(components * dims), second(data.second.rows() * dims);
    for (int64_t n = 0; n < c.rows; ++n) {
      const Kind kind = data.kind[static_cast<size_t>(n)];
      std::vector<Joint> joint;
      double top = -HUGE_VAL, error = 0.0, sum = 0.0;
      for (int64_t k = 0; k < c.components; ++k) joint.emplace_back(data, n, k), top = std::max(top, joint.back().l);
      for (const Joint& j : joint) {
        if (j.l == -HUGE_VAL) continue;
        sum += std::exp(j.l - top);
        if (j.l > top - 30.0 - j.error) error = std::max(error, j.error);
      }
      const double baseline = data.baseline.value(0, 0), log_prob = kind == Kind::kNan ? std::nan("") : baseline + top + std::log(sum);
      forward.compare("log_prob", n, 0, data.log_prob.result(0, n), top == -HUGE_VAL && kind != Kind::kNan ? top : log_prob,
                      error + 4.0 * unit * (std::fabs(baseline) + 1.0) + 1e-6 * std::fabs(log_prob));
      double all = 0.0;
      std::vector<Sum> grad_x(dims), own(components);
      for (int64_t k = 0; k < c.components; ++k) {
        const Joint& j = joint[static_cast<size_t>(k)];
        const double share = j.l == -HUGE_VAL || top == -HUGE_VAL ? 0.0 : std::exp(j.l - top) / sum;
        const double share_error = j.l == -HUGE_VAL || top == -HUGE_VAL ? 0.0 : share * (3.0 * (error + j.error) + 16.0 * unit) + 1e-37;
        const double got = data.q.result(n, k);
        all += got;
        if (kind == Kind::kNear || kind == Kind::kDead)
          forward.compare("responsibility", n, k, got, share, share_error);
        else if (kind == Kind::kNan)
          forward.compare("responsibility", n, k, got, std::nan(""), 0.0);
        double q = data.upstream(n) * share, q_error = std::fabs(data.upstream(n)) * share_error;
        if (kind == Kind::kFar && !c.given) q = q_error = 0.0;
        if (c.given) q = data.weights.value(n, k), q_error = 0.0;
        own[static_cast<size_t>(k)].add(q, q_error, 1.0, 4.0 * unit);
        counts[static_cast<size_t>(k)].add(q, q_error, 1.0, 4.0 * unit);
        for (int64_t e = 0; e < c.dims; ++e) {
          const size_t at = static_cast<size_t>(k * c.dims + e), of_e = static_cast<size_t>(e);
          const double t = j.t[of_e], u = j.u[of_e];
          if (q == 0.0 && q_error == 0.0) continue;
          if (c.full()) {
            first[at].add(q, q_error, t, 8.0 * unit * std::fabs(t));
            const int64_t row = data.matrices == 1 ? 0 : k * c.dims;
            for (int64_t d = 0; d < c.dims; ++d) {
              const double td = j.t[static_cast<size_t>(d)];
              if (d <= e) second[static_cast<size_t>((row + d) * c.dims + e)].add(q, q_error, td * t, 12.0 * unit * std::fabs(td * t));
              // d is the dimension of x: du_e/dx_d
              const double f = data.scale.value(row + d, e), u_error = unit * (4.0 + c.dims) * (std::fabs(u) + magnitude(data, j, row, e));
              if (d <= e) grad_x[static_cast<size_t>(d)].add(q, q_error, -u * f, std::fabs(f) * u_error);
            }
          } else {
            const double r = data.scale.value(k, e);
            double apart = 0.0;  // what cancels in products about the centre, each operand within 2^-23 and sums cut off at 24 bits
            if (cuda && c.products) {
              const double m = (data.means.value(k, e) - data.centre.value(0, e)) * r;
              apart = 6.0 * unit * (std::fabs(m) + std::fabs(m + u));
            }
            first[at].add(q, q_error, u, 8.0 * unit * std::fabs(u) + apart);
            const double squares = apart * apart / (6.0 * unit);
            second[at].add(q, q_error, u * u, 12.0 * unit * u * u + squares);
            grad_x[of_e].add(q, q_error, -u * r, (8.0 + c.components) * unit * std::fabs(u * r) + apart * r);
          }
        }
      }
      if (c.with_row_logits() && (kind == Kind::kNear || kind == Kind::kDead)) check_row_logits(data, n, own, backward);
      if (kind == Kind::kFar) forward.compare("sum of responsibilities", n, 0, all, 1.0, 64.0 * unit * c.components);
      for (int64_t d = 0; c.with_x && d < c.dims; ++d) {
        const Sum& want = grad_x[static_cast<size_t>(d)];
        const DType dtype = data.grad_x.dtype();
        const double stored = dtype == DType::kHalf                   ? 1e-3
                              : dtype == DType::kBFloat16             ? 8e-3
                              : c.is_double && dtype == DType::kFloat ? 1e-7
                                                                      : 0.0;
        const double got = data.grad_x.result(n, d) / data.x_scale.value(0, d);
        if (overflows(want.value, dtype)) continue;
        if (kind == Kind::kNan) {
          if (!c.given) backward.compare("grad_x", n, d, got, std::nan(""), 0.0);
          continue;
        }
        if (kind == Kind::kFar && c.given) continue;  // of any size
        backward.compare("grad_x", n, d, got, want.value, want.error + stored * std::fabs(want.value) + (stored > 0.0 ? 1e-7 : 1e-30));
      }
    }
    const bool far_rows = c.given && std::find(data.kind.begin(), data.kind.end(), Kind::kFar) != data.kind.end();
    const bool nan_rows = std::find(data.kind.begin(), data.kind.end(), Kind::kNan) != data.kind.end();
    if (c.with_sums && !nan_rows) {
      for (int64_t k = 0; k < c.components; ++k) {
        const Sum& of_k = counts[static_cast<size_t>(k)];
        backward.compare("count", k, 0, data.counts.result(0, k), of_k.value, of_k.error + 1e-30);
      }
    }
    if (c.with_sums && !nan_rows && !far_rows) {
      for (int64_t k = 0; k < c.components; ++k) {
        for (int64_t d = 0; d < c.dims; ++d) {
          const Sum& want = first[static_cast<size_t>(k * c.dims + d)];
          backward.compare("first", k, d, data.first.result(k, d), want.value, want.error + 1e-30);
        }
      }
      for (int64_t r = 0; c.with_second && r < data.second.rows(); ++r) {
        for (int64_t e = c.full() ? r % c.dims : 0; e < c.dims; ++e) {
          const Sum& want = second[static_cast<size_t>(r * c.dims + e)];
          backward.compare("second", r, e, data.second.result(r, e), want.value, want.error + 1e-30);
        }
      }
    }
    tally.check(forward.count == 0, where + " forward" + forward.first);
    tally.check(backward.count == 0, where + " backward" + backward.first);
  }

  /// Of the logits of a row's own weights: q_k - w_k sum of q. The CPU's kernel gives q alone.
  void check_row_logits(const Data& data, int64_t n, const std::vector<Sum>& own, Differences& found) const {
    double all = 0.0, error = 0.0;
    for (const Sum& of_k : own) all += of_k.value, error += of_k.error + 8.0 * c.unit() * std::fabs(of_k.value);
    for (int64_t k = 0; k < c.components; ++k) {
      const Sum& of_k = own[static_cast<size_t>(k)];
      const double w = std::exp(data.row_weights.value(n, k)), want = cuda ? of_k.value - w * all : of_k.value;
      const double got = cuda ? data.row_logits.result(n, k) : data.row_counts.result(n, k);
      const double rounding = 32.0 * c.unit() * (std::fabs(of_k.value) + w * std::fabs(all));
      found.compare("row logits", n, k, got, want, of_k.error + w * error + rounding + 1e-30);
    }
  }

  double magnitude(const Data& data, const Joint& j, int64_t row, int64_t e) const {
    double sum = 0.0;
    for (int64_t d = 0; d <= e; ++d) sum += std::fabs(j.t[static_cast<size_t>(d)] * data.scale.value(row + d, e));
    return sum;
  }
};

/// Outputs may be absent, and what is not asked for is not written.
void check_absent(Implementation& implementation, Random& random) {
  Case c;
  c.rows = 70, c.components = 20, c.dims = 5;
  Data data(c, *implementation.memory, random, DType::kFloat, Layout::kDense);
  for (int which = 0; which < 16; ++which) {
    Tensor* const outputs[4] = {&data.log_prob, &data.shift, &data.total, &data.q};
    for (Tensor* t : outputs) t->fill([] { return -7.0; });
    MixtureForwardArgs f;
    f.mixture = data.args();
    if ((which & 1) != 0) f.log_prob = data.log_prob.data();
    if ((which & 2) != 0) f.shift = data.shift.data();
    if ((which & 4) != 0) f.total = data.total.data();
    if ((which & 8) != 0) f.responsibilities = data.q.data();
    implementation.mixture(f);
    bool ok = true;
    for (int i = 0; i < 4; ++i) {
      outputs[i]->download();
      ok = ok && (outputs[i]->result(0, 3) == -7.0) == ((which & 1 << i) == 0);
    }
    tally.check(ok, implementation.name + text(" mixture: outputs %d alone", which));
  }
}

/// Means near the centre are taken from it: with a centre far away or a mean far from it, every row comes out as without any.
void check_centre(Implementation& implementation, Random& random) {
  if (!implementation.cuda) return;
  for (const int far : {0, 1, 2}) {
    Case c;
    c.rows = 40, c.components = 64, c.dims = 16, c.near = true;
    Data data(c, *implementation.memory, random, DType::kFloat, Layout::kDense);
    if (far == 1) data.means.set(11, 5, 1e4);
    data.upload();
    if (far == 2) data.centre.set(0, 3, std::nan("")), data.centre.upload();
    MixtureForwardArgs f;
    f.mixture = data.args();
    f.log_prob = data.log_prob.data();
    implementation.mixture(f);
    data.log_prob.download();
    const auto without = data.log_prob.image();
    f.mixture.centre = static_cast<const float*>(data.centre.data());
    implementation.mixture(f);
    data.log_prob.download();
    tally.check((without == data.log_prob.image()) == (far != 0), implementation.name + text(" mixture: a centre, means far %d", far));
  }
}

/// Rows that a component explains, in many dimensions, and moments of many rows: float sums that do not lose to their own size.
void check_accuracy(Implementation& implementation, Random& random) {
  Case c;
  c.rows = 40, c.components = 3, c.dims = 3000, c.offset = 100.0;
  Data data(c, *implementation.memory, random, DType::kFloat, Layout::kDense);
  for (int64_t n = 0; n < c.rows; ++n) {
    for (int64_t d = 0; d < c.dims; ++d) data.x.set(n, d, data.means.value(n % 3, d) + random.normal() / data.scale.value(n % 3, d));
  }
  data.x.upload();
  MixtureForwardArgs f;
  f.mixture = data.args();
  f.log_prob = data.log_prob.data();
  implementation.mixture(f);
  data.log_prob.download();
  double worst = 0.0;
  for (int64_t n = 0; n < c.rows; ++n) {
    double top = -HUGE_VAL, sum = 0.0;
    for (int64_t k = 0; k < c.components; ++k) top = std::max(top, Joint(data, n, k).l);
    for (int64_t k = 0; k < c.components; ++k) sum += std::exp(Joint(data, n, k).l - top);
    worst = std::max(worst, std::fabs(data.log_prob.result(0, n) - (data.baseline.value(0, 0) + top + std::log(sum))));
  }
  tally.check(worst < 3e-4, implementation.name + text(" mixture in 3000 dimensions is off by %.3g nats", worst));
}

}  // namespace

void check_mixture(Implementation& implementation, int rounds) {
  if (!implementation.mixture || !implementation.mixture_backward) return;
  for (int round = 0; round < 3 * rounds; ++round) {
    Random random(static_cast<uint64_t>(7000 + round));
    if (implementation.disturb) implementation.disturb(static_cast<unsigned>(round));
    Case c;
    c.scale = random.one_of({Scale::kDiagonal, Scale::kDiagonal, Scale::kFull, Scale::kTied});
    c.is_double = random.coin(0.3);
    c.rows = random.one_of({0, 1, 3, 63, 64, 130, 257, 700});
    c.components = random.one_of({1, 2, 3, 7, 16, 17, 20, 64, 65, 100, 300});
    c.dims = random.one_of({1, 2, 3, 4, 5, 8, 15, 16, 17, 33, 64, 65, 130});
    c.products = c.scale == Scale::kDiagonal && !c.is_double && random.coin();
    c.centred = c.scale == Scale::kDiagonal && !c.is_double && random.coin();
    c.near = random.coin();
    const int64_t most = c.products ? 20000 : c.full() ? 60000 : 400000;  // emulated tensor cores are slow
    while (c.components > 3 && c.rows * c.components * c.dims > most) c.components = c.components / 2;
    while (c.rows > 3 && c.rows * c.components * c.dims > most) c.rows = c.rows / 3;
    c.dtype = random.one_of({DType::kFloat, DType::kFloat, DType::kFloat, DType::kHalf, DType::kBFloat16, DType::kUInt8, DType::kBool});
    if (c.is_double && random.coin(0.6)) c.dtype = DType::kDouble;
    c.layout = static_cast<Layout>(random.below(kLayouts));
    c.offset = random.one_of({0.0, 0.0, 50.0});
    c.far = random.coin(0.3), c.dead = random.coin(0.3), c.nan = random.coin(0.15), c.none = random.coin(0.3);
    c.wide = random.coin(0.2), c.scaled = random.coin(0.2);
    c.identical = random.coin(0.1), c.given = random.coin(0.25), c.constant_grad = random.coin(0.2);
    if (c.constant_grad || c.given) c.far = false;
    if (c.given) c.nan = false;
    c.with_x = random.coin(0.7), c.with_sums = !c.with_x || random.coin(0.7), c.with_second = random.coin(0.7);
    if (c.constant_grad && c.is_double) c.dead = false;
    c.by_row = random.coin(0.3);
    Run(implementation, random, c);
  }
  Random random(1);
  for (const Scale scale : {Scale::kDiagonal, Scale::kFull, Scale::kTied}) {
    Case c;
    c.scale = scale;
    c.rows = 5000, c.components = 2, c.dims = 3;  // many pieces
    Run(implementation, random, c);
    c.rows = 2500, c.components = 9, c.dims = 2, c.given = true;
    Run(implementation, random, c);
    c.rows = 3, c.components = 5, c.dims = 300, c.given = false;
    Run(implementation, random, c);
    c.rows = 131, c.components = 17, c.dims = 9, c.by_row = true;
    Run(implementation, random, c);
  }
  for (const int64_t components : {1, 16, 65, 130}) {  // means near the centre and not, in whole tiles of components and dimensions
    Case c;
    c.rows = 131, c.components = components, c.dims = 40, c.centred = true;
    Run(implementation, random, c);
    c.near = true;
    Run(implementation, random, c);
    c.offset = 50.0;
    Run(implementation, random, c);
    c.far = c.dead = c.nan = c.none = true;
    Run(implementation, random, c);
  }
  for (const int64_t components : {17, 65, 130}) {  // every mean near the centre, in whole tiles of dimensions, which one kernel is for
    Case c;
    c.rows = 131, c.components = components, c.dims = 48, c.centred = c.near = true;
    for (const Layout layout : {Layout::kDense, Layout::kPadded, Layout::kOddPadded, Layout::kSharedRow, Layout::kTwoBatchDims}) {
      c.layout = layout;
      Run(implementation, random, c);
    }
    c.layout = Layout::kDense, c.offset = 50.0, c.wide = true;
    Run(implementation, random, c);
    c.dead = c.nan = c.none = c.identical = true;
    Run(implementation, random, c);
  }
  for (const int64_t components : {1, 17, 65}) {
    Case c;
    c.rows = 131, c.components = components, c.dims = 17, c.products = true;
    c.none = components > 1;
    Run(implementation, random, c);
    c.far = c.dead = c.nan = true;
    Run(implementation, random, c);
  }
  for (const int64_t components : {17, 40, 68, 130}) {  // sums by products, in whole tiles and not
    Case c;
    c.rows = 131, c.components = components, c.dims = components == 68 ? 128 : 61, c.products = true;
    for (const Layout layout : {Layout::kDense, Layout::kSharedRow, Layout::kTwoBatchDims}) {
      c.layout = layout;
      Run(implementation, random, c);
    }
    c.layout = Layout::kDense, c.offset = 50.0, c.given = true, c.with_second = false;
    Run(implementation, random, c);
    c.with_second = true, c.dead = true, c.dtype = DType::kBFloat16;
    Run(implementation, random, c);
    c.given = false, c.dtype = DType::kFloat, c.far = c.nan = c.none = true;
    Run(implementation, random, c);
  }
  for (const bool dead : {false, true}) {  // and so many rows that a piece's sums are put down in between
    Case c;
    c.rows = 1500, c.components = 40, c.dims = 32, c.products = c.given = true, c.dead = dead;
    Run(implementation, random, c);
  }
  check_absent(implementation, random);
  check_centre(implementation, random);
  check_accuracy(implementation, random);
}

}  // namespace native

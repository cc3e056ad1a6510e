// Mixture density networks, against plain loops in double.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "implementations.h"

namespace native {

namespace {

using vae_fast::MdnArgs;
using vae_fast::MdnBackwardArgs;

struct Case {
  int64_t rows = 1, components = 1, dims = 1;
  bool is_double = false, shared_scale = false;
  double floor = -HUGE_VAL;
  DType dtype[4] = {DType::kFloat, DType::kFloat, DType::kFloat, DType::kFloat};  // y, logits, means, scale
  Layout layout[4] = {Layout::kDense, Layout::kDense, Layout::kDense, Layout::kDense};
  bool large_logits = false, none = false, far = false, dead = false, nan = false, tiny = false;
  bool dense_gradients = false;
  unsigned wanted = 15;  // gradients, a bit each

  DType compute() const { return is_double ? DType::kDouble : DType::kFloat; }
  double unit() const { return is_double ? 2.3e-16 : 1.2e-7; }
  std::string name() const {
    return text(" mdn%s (%ld, %ld, %ld) dtypes %d%d%d%d layouts %d%d%d%d floor %g wanted %u%s%s%s%s%s%s%s", is_double ? " double" : "",
                static_cast<long>(rows), static_cast<long>(components), static_cast<long>(dims), static_cast<int>(dtype[0]),
                static_cast<int>(dtype[1]), static_cast<int>(dtype[2]), static_cast<int>(dtype[3]), static_cast<int>(layout[0]),
                static_cast<int>(layout[1]), static_cast<int>(layout[2]), static_cast<int>(layout[3]), floor, wanted,
                shared_scale ? " shared scale" : "", large_logits ? " large logits" : "", none ? " none" : "", far ? " far" : "",
                dead ? " dead" : "", nan ? " nan" : "", tiny ? " tiny" : "");
  }
};

DType gradient_dtype(const Case& c, int i) { return c.dtype[i] == DType::kUInt8 || c.dtype[i] == DType::kBool ? c.compute() : c.dtype[i]; }

struct Data {
  const Case& c;
  int64_t columns[4];
  std::vector<std::unique_ptr<Tensor>> in, grad;
  Tensor log_prob, upstream;

  Data(const Case& given, Memory& memory, Random& random)
      : c(given),
        columns{c.dims, c.components, c.components * c.dims, c.shared_scale ? c.components : c.components * c.dims},
        log_prob(memory, c.compute(), 1, c.rows),
        upstream(memory, c.compute(), 1, 2 * c.rows + 1) {
    for (int i = 0; i < 4; ++i) {
      in.push_back(std::make_unique<Tensor>(memory, c.dtype[i], c.rows, columns[i], c.layout[i]));
      const Layout layout = random.one_of({Layout::kDense, Layout::kPadded, Layout::kOddPadded, Layout::kShifted});
      grad.push_back(
          std::make_unique<Tensor>(memory, gradient_dtype(c, i), c.rows, columns[i], c.dense_gradients ? Layout::kDense : layout));
    }
    in[0]->fill([&] { return 2.0 * random.normal(); });
    in[1]->fill([&] { return (c.large_logits ? 1e4 : 2.0) * random.normal(); });
    in[2]->fill([&] { return 2.0 * random.normal(); });
    in[3]->fill([&] { return c.tiny ? (random.coin(0.3) ? -30.0 : 30.0 * random.uniform(-1.0, 1.0)) : random.uniform(-1.5, 1.0); });
    upstream.fill([&] { return random.normal(); });
    const bool logits_dense = dense(1) && dtype_wide(1), y_dense = dense(0) && dtype_wide(0);
    for (int64_t n = 0; n < c.rows; ++n) {
      for (int64_t k = 1; k < c.components && c.none && logits_dense; ++k) {
        if (random.coin(0.3)) in[1]->set(n, k, -HUGE_VAL);
      }
      if (!y_dense || !random.coin(0.2)) continue;
      const int which = static_cast<int>(random.below(3));
      for (int64_t d = 0; d < c.dims; ++d) {
        if (c.far && which == 0) in[0]->set(n, d, 1e4);
        if (c.dead && which == 1) in[0]->set(n, d, c.dtype[0] == DType::kDouble ? 1.7e308 : 3.3e38);
      }
      if (c.nan && which == 2) in[0]->set(n, random.below(c.dims), std::nan(""));
    }
    for (auto& t : in) t->upload();
  }
  bool dense(int i) const { return c.layout[i] <= Layout::kShifted || c.layout[i] == Layout::kTwoBatchDims; }
  bool dtype_wide(int i) const { return c.dtype[i] == DType::kFloat || c.dtype[i] == DType::kDouble || c.dtype[i] == DType::kBFloat16; }

  MdnBackwardArgs args() const {
    MdnBackwardArgs b;
    MdnArgs& f = b.forward;
    f.rows = c.rows, f.components = c.components, f.dims = c.dims;
    f.is_double = c.is_double, f.shared_scale = c.shared_scale, f.floor = c.floor;
    f.y = in[0]->stream(), f.logits = in[1]->stream(), f.means = in[2]->stream(), f.scale = in[3]->stream();
    f.log_prob = log_prob.data();
    b.grad.constant = 0.5, b.grad.data = upstream.data(), b.grad.stride = 2;
    Stream* const to[4] = {&b.grad_y, &b.grad_logits, &b.grad_means, &b.grad_scale};
    for (int i = 0; i < 4; ++i) {
      if ((c.wanted & 1u << i) != 0) *to[i] = grad[static_cast<size_t>(i)]->stream();
    }
    return b;
  }
};

class Run {
 public:
  Run(Implementation& implementation, Random& random, const Case& given) : c(given), where(implementation.name + c.name()) {
    const uint64_t seed = random.engine();
    Random draw(seed), again(seed);
    Data data(c, *implementation.memory, draw), other(c, *implementation.memory, again);
    run(implementation, data);
    for (int64_t n = 0; n < c.rows; ++n) check_row(data, n);
    tally.check(bad == 0, where + first);
    if (implementation.disturb) implementation.disturb(static_cast<unsigned>(random.below(100)));
    run(implementation, other);
    bool same = data.log_prob.image() == other.log_prob.image();
    for (size_t i = 0; i < 4; ++i) same = same && data.grad[i]->image() == other.grad[i]->image();
    tally.check(same, where + ": another order of threads, another result");
  }

 private:
  const Case& c;
  std::string where, first;
  int bad = 0;

  void run(Implementation& implementation, Data& data) {
    const MdnBackwardArgs args = data.args();
    implementation.mdn(args.forward);
    implementation.mdn_backward(args);
    data.log_prob.download();
    for (auto& t : data.grad) t->download();
  }

  void compare(const char* what, int64_t n, int64_t i, double got, double want, double tolerance) {
    if (close(got, want, tolerance)) return;
    if (++bad == 1)
      first = text(" %s (%ld, %ld): %.9g, not %.9g (+- %.3g)", what, static_cast<long>(n), static_cast<long>(i), got, want, tolerance);
  }

  void compare_gradient(const Data& data, int i, int64_t n, int64_t at, double want, double tolerance) {
    static const char* const names[] = {"grad y", "grad logits", "grad means", "grad scale"};
    if ((c.wanted & 1u << i) == 0) return;
    const Tensor& grad = *data.grad[static_cast<size_t>(i)];
    const DType dtype = grad.dtype();
    const double stored = dtype == DType::kHalf                   ? 1e-3
                          : dtype == DType::kBFloat16             ? 8e-3
                          : c.is_double && dtype == DType::kFloat ? 1e-7
                                                                  : 0.0;
    if (overflows(want, dtype) || (dtype != DType::kDouble && std::fabs(want) > 3e38)) return;
    compare(names[i], n, at, grad.result(n, at), want, tolerance + stored * std::fabs(want) + (stored > 0.0 ? 1e-7 : 1e-30));
  }

  void check_row(const Data& data, int64_t n) {
    const double unit = c.unit(), far = farthest(c.is_double);
    const size_t components = static_cast<size_t>(c.components), elements = components * static_cast<size_t>(c.dims);
    std::vector<double> l(components), error(components), log_w(components), u(elements), inverse(elements), in_scale(elements);
    double top_logit = -HUGE_VAL, weights = 0.0;
    for (int64_t k = 0; k < c.components; ++k) top_logit = std::max(top_logit, data.in[1]->value(n, k));
    for (int64_t k = 0; k < c.components; ++k) weights += std::exp(data.in[1]->value(n, k) - top_logit);
    double top = -HUGE_VAL, sum = 0.0, most = 0.0;
    bool nan = false;
    for (int64_t k = 0; k < c.components; ++k) {
      const size_t of_k = static_cast<size_t>(k);
      log_w[of_k] = data.in[1]->value(n, k) - top_logit - std::log(weights);
      double energy = 0.0, magnitude = 0.0;
      for (int64_t d = 0; d < c.dims; ++d) {
        const size_t at = static_cast<size_t>(k * c.dims + d);
        const double given = data.in[3]->value(n, c.shared_scale ? k : k * c.dims + d), log_s = std::max(given, c.floor);
        const double y = data.in[0]->value(n, d), mean = data.in[2]->value(n, k * c.dims + d);
        nan = nan || std::isnan(y);
        inverse[at] = std::exp(-log_s);
        u[at] = (std::min(far, std::max(-far, y)) - std::min(far, std::max(-far, mean))) * inverse[at];
        in_scale[at] = given <= c.floor ? 0.0 : 1.0;
        energy += log_s + 0.5 * u[at] * u[at];
        magnitude += std::fabs(log_s) + (4.0 + std::fabs(log_s)) * u[at] * u[at];
      }
      l[of_k] = log_w[of_k] - energy;
      if (!c.is_double && l[of_k] < -1.7e38) l[of_k] = -HUGE_VAL;
      error[of_k] = 4.0 * unit * (magnitude + 2.0 + (std::isinf(log_w[of_k]) ? 0.0 : std::fabs(log_w[of_k])));
      top = std::max(top, l[of_k]);
    }
    for (size_t k = 0; k < components; ++k) {
      if (l[k] == -HUGE_VAL) continue;
      sum += std::exp(l[k] - top);
      if (l[k] > top - 30.0 - error[k]) most = std::max(most, error[k]);
    }
    const double log_2pi = 1.8378770664093454836;
    const double want = nan ? std::nan("") : top == -HUGE_VAL ? top : top + std::log(sum) - 0.5 * static_cast<double>(c.dims) * log_2pi;
    compare("log_prob", n, 0, data.log_prob.result(0, n), want, most + 8.0 * unit * (std::fabs(top) + c.dims));
    if (most > 0.02) return;  // who takes the row is left to rounding
    const double g = 0.5 * data.upstream.value(0, 2 * n);
    std::vector<double> grad_y(static_cast<size_t>(c.dims)), grad_y_error(grad_y);
    for (int64_t k = 0; k < c.components; ++k) {
      const size_t of_k = static_cast<size_t>(k);
      const bool reached = l[of_k] != -HUGE_VAL && top != -HUGE_VAL;
      double q = reached ? g * std::exp(l[of_k] - top) / sum : 0.0;
      const double q_error = reached ? std::fabs(q) * (3.0 * (most + error[of_k]) + 16.0 * unit) + 1e-37 * std::fabs(g) : 0.0;
      const double w = top == -HUGE_VAL ? 0.0 : g * std::exp(log_w[of_k]);
      if (nan) q = std::nan("");
      compare_gradient(data, 1, n, k, nan ? q : q - w,
                       q_error + std::fabs(w) * unit * (16.0 + 4.0 * std::min(1e3, std::fabs(log_w[of_k]))));
      double shared = 0.0, shared_error = 0.0;
      for (int64_t d = 0; d < c.dims; ++d) {
        const size_t at = static_cast<size_t>(k * c.dims + d), of_d = static_cast<size_t>(d);
        const double relative = unit * (16.0 + 4.0 * std::fabs(std::log(inverse[at])));
        const double mean = q == 0.0 ? 0.0 : q * u[at] * inverse[at],
                     mean_error = (q_error + std::fabs(q) * relative) * std::fabs(u[at] * inverse[at]);
        const double s = q == 0.0 ? 0.0 : q * (u[at] * u[at] - 1.0) * in_scale[at];
        const double s_error = (q_error + 2.0 * std::fabs(q) * relative) * (u[at] * u[at] + 1.0) * in_scale[at];
        grad_y[of_d] -= mean;
        grad_y_error[of_d] += q == 0.0 && q_error == 0.0 ? 0.0 : mean_error + c.components * unit * std::fabs(mean);
        shared += s, shared_error += q == 0.0 && q_error == 0.0 ? 0.0 : s_error * 2.0;
        if (!nan) compare_gradient(data, 2, n, k * c.dims + d, mean, q == 0.0 && q_error == 0.0 ? 0.0 : mean_error);
        if (!nan && !c.shared_scale) compare_gradient(data, 3, n, k * c.dims + d, s, q == 0.0 && q_error == 0.0 ? 0.0 : s_error);
      }
      if (!nan && c.shared_scale) compare_gradient(data, 3, n, k, shared, shared_error);
    }
    for (int64_t d = 0; d < c.dims && !nan; ++d)
      compare_gradient(data, 0, n, d, grad_y[static_cast<size_t>(d)], grad_y_error[static_cast<size_t>(d)]);
  }
};

}  // namespace

void check_mdn(Implementation& implementation, int rounds) {
  if (!implementation.mdn || !implementation.mdn_backward) return;
  for (int round = 0; round < 4 * rounds; ++round) {
    Random random(static_cast<uint64_t>(9000 + round));
    if (implementation.disturb) implementation.disturb(static_cast<unsigned>(round));
    Case c;
    c.is_double = random.coin(0.3);
    c.rows = random.one_of({0, 1, 3, 17, 64, 257, 1000});
    c.components = random.one_of({1, 2, 3, 5, 8, 16, 20, 33, 100, 300, 700});
    c.dims = random.one_of({1, 1, 2, 3, 4, 5, 16, 33, 130, 300});
    while (c.rows > 3 && c.rows * c.components * c.dims > 60000) c.rows /= 3;
    while (c.components > 3 && c.rows * c.components * c.dims > 60000) c.components /= 2;
    for (int i = 0; i < 4; ++i) {
      c.dtype[i] = random.one_of({DType::kFloat, DType::kFloat, DType::kFloat, DType::kHalf, DType::kBFloat16});
      if (c.is_double && random.coin(0.6)) c.dtype[i] = DType::kDouble;
      c.layout[i] = random.coin(0.6) ? Layout::kDense : static_cast<Layout>(random.below(kLayouts));
    }
    c.shared_scale = random.coin(0.3);
    if (random.coin(0.4)) c.floor = -0.5;
    c.large_logits = random.coin(0.2), c.none = random.coin(0.3), c.far = random.coin(0.2), c.dead = random.coin(0.2);
    c.nan = random.coin(0.15), c.tiny = random.coin(0.15);
    c.wanted = random.coin(0.6) ? 15u : static_cast<unsigned>(random.below(16));
    if (round % 2 == 0) {  // many dense rows of few parameters in float, which a thread each may take; one of the tensors may be another
      c.is_double = false, c.dense_gradients = true;
      c.rows = random.one_of({128, 130, 255, 256, 257, 1000, 2051});
      c.components = random.one_of({1, 2, 3, 5, 5, 8, 10, 16, 24});
      c.dims = random.one_of({1, 2, 2, 3, 4, 5});
      for (int i = 0; i < 4; ++i) c.dtype[i] = DType::kFloat, c.layout[i] = Layout::kDense;
      if (random.coin(0.1)) c.layout[random.below(4)] = static_cast<Layout>(random.below(kLayouts));
    }
    Run(implementation, random, c);
  }
}

}  // namespace native

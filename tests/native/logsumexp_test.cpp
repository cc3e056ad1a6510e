// Log-sum-exp and its gradients, and the conditional scaling, against plain loops in double.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "implementations.h"

namespace native {

namespace {

using vae_fast::LogSumExpArgs;
using vae_fast::LogSumExpBackwardArgs;

/// Weights of zero leave an entry out whatever it is.
double reference(const std::vector<double>& a, const std::vector<double>& w) {
  double top = -HUGE_VAL, sum = 0.0;
  for (size_t k = 0; k < a.size(); ++k) {
    if (w[k] != 0.0 && std::isnan(a[k])) return a[k];
    if (w[k] != 0.0) top = std::max(top, a[k]);
  }
  if (std::isinf(top)) return top;
  for (size_t k = 0; k < a.size(); ++k) sum += w[k] == 0.0 ? 0.0 : w[k] * std::exp(a[k] - top);
  return std::log(sum) + top;
}

struct Shape {
  int64_t outer, k, inner;
};

void run(Implementation& implementation, Random& random, Shape s, bool is_double, DType dtype, int weights, int special) {
  Memory& memory = *implementation.memory;
  const DType compute = is_double ? DType::kDouble : DType::kFloat;
  const int64_t sums = s.outer * s.inner;
  Tensor a(memory, dtype, s.outer * s.k, s.inner), out(memory, compute, s.outer, s.inner), g(memory, compute, s.outer, s.inner);
  a.fill([&] { return random.coin(0.05) ? 300.0 * random.normal() : 3.0 * random.normal(); });
  if (special > 0 && s.k > 0) {
    for (int64_t o = 0; o < s.outer; ++o) {
      for (int64_t i = 0; i < s.inner; ++i) {
        const int kind = static_cast<int>(random.below(6));
        for (int64_t k = 0; k < s.k; ++k) {
          if (kind == 0) a.set(o * s.k + k, i, -HUGE_VAL);
          if (kind == 1 && random.coin()) a.set(o * s.k + k, i, -HUGE_VAL);
        }
        if (kind == 2) a.set(o * s.k + random.below(s.k), i, std::nan(""));
        if (kind == 3) a.set(o * s.k + random.below(s.k), i, HUGE_VAL);
      }
    }
    a.upload();
  }
  g.fill([&] { return random.normal(); });
  LogSumExpBackwardArgs args;
  LogSumExpArgs& f = args.forward;
  f.outer = s.outer;
  f.k = s.k;
  f.inner = s.inner;
  f.is_double = is_double;
  f.a = a.data();
  f.dtype = dtype;
  f.out = out.data();
  // weights: 0 none, 1 one per k, 2 dense
  const int64_t of_w = weights == 1 ? s.k : s.outer * s.k * s.inner;
  Tensor w(memory, compute, 1, std::max<int64_t>(of_w, 1));
  w.fill([&] { return random.coin(0.2) ? 0.0 : random.uniform(0.1, 2.0); });
  if (weights > 0) {
    f.w = w.data();
    f.w_stride[0] = weights == 2 ? s.k * s.inner : 0;
    f.w_stride[1] = weights == 2 ? s.inner : 1;
    f.w_stride[2] = weights == 2 ? 1 : 0;
  }
  implementation.logsumexp(f);
  out.download();
  Tensor grad_a(memory, dtype, s.outer * s.k, s.inner), grad_w(memory, compute, s.outer * s.k, s.inner);
  const bool shared_grad = random.coin(0.2);
  args.grad_out = g.data();
  args.grad_out_stride[0] = shared_grad ? 0 : s.inner;
  args.grad_out_stride[1] = shared_grad ? 0 : 1;
  args.grad_a = grad_a.data();
  args.grad_w = weights > 0 ? grad_w.data() : nullptr;
  implementation.logsumexp_backward(args);
  grad_a.download();
  grad_w.download();

  const std::string where = implementation.name + text(" logsumexp%s dtype %d (%ld, %ld, %ld) weights %d special %d",
                                                       is_double ? " double" : "", static_cast<int>(dtype), static_cast<long>(s.outer),
                                                       static_cast<long>(s.k), static_cast<long>(s.inner), weights, special);
  int bad = 0;
  std::string first;
  const double unit = is_double ? 1e-13 : 4e-6;
  for (int64_t column = 0; column < sums; ++column) {
    const int64_t o = column / s.inner, i = column % s.inner;
    std::vector<double> values, w_values;
    for (int64_t k = 0; k < s.k; ++k) {
      values.push_back(a.value(o * s.k + k, i));
      w_values.push_back(weights == 0 ? 1.0 : w.value(0, weights == 1 ? k : (o * s.k + k) * s.inner + i));
    }
    const double want = reference(values, w_values), got = out.result(o, i);
    if (!close(got, want, unit * (1.0 + std::fabs(want))) && ++bad == 1)
      first = text(" sum %ld: %.9g, not %.9g", static_cast<long>(column), got, want);
    if (want == HUGE_VAL || std::isnan(want)) continue;  // no gradient is promised
    const double up = shared_grad ? g.value(0, 0) : g.value(o, i);
    for (int64_t k = 0; k < s.k; ++k) {
      const size_t at = static_cast<size_t>(k);
      const double p = want == -HUGE_VAL ? 0.0 : std::exp(values[at] - got);
      const double d_w = up * p, d_a = w_values[at] == 0.0 ? 0.0 : w_values[at] * d_w;
      const double stored = dtype == DType::kHalf ? 1e-3 : dtype == DType::kBFloat16 ? 8e-3 : 0.0;
      const double compute_error = unit * (1.0 + std::min(1e3, std::fabs(values[at] - got)));
      if (!close(grad_a.result(o * s.k + k, i), d_a, (compute_error + stored) * std::fabs(d_a) + (stored > 0 ? 1e-7 : 1e-30)) &&
          ++bad == 1) {
        first =
            text(" grad a (%ld, %ld): %.9g, not %.9g", static_cast<long>(column), static_cast<long>(k), grad_a.result(o * s.k + k, i), d_a);
      }
      const bool large = !is_double && std::fabs(d_w) > 3e38;
      if (weights > 0 && !large && !close(grad_w.result(o * s.k + k, i), d_w, compute_error * std::fabs(d_w) + 1e-30) && ++bad == 1) {
        first =
            text(" grad w (%ld, %ld): %.9g, not %.9g", static_cast<long>(column), static_cast<long>(k), grad_w.result(o * s.k + k, i), d_w);
      }
    }
  }
  tally.check(bad == 0, where + first);
}

}  // namespace

void check_logsumexp(Implementation& implementation, int rounds) {
  for (int round = 0; round < 5 * rounds; ++round) {
    Random random(static_cast<uint64_t>(5000 + round));
    if (implementation.disturb) implementation.disturb(static_cast<unsigned>(round));
    const bool is_double = random.coin(0.2), flat = random.coin();
    Shape s;
    s.outer = random.one_of({0, 1, 3, 17, 100});
    s.k = random.one_of({1, 2, 5, 10, 31, 32, 64, 129, 300, 2500});
    s.inner = flat ? 1 : random.one_of({2, 3, 33, 100, 257});
    if (s.outer * s.k * s.inner > 30000) s.outer = 1;
    if (s.k * s.inner > 30000) s.k = 64;
    if (flat && random.coin(0.03)) s.outer = 601, s.k = 304;  // rows enough for less than a warp each
    const DType dtype = is_double ? DType::kDouble : random.one_of({DType::kFloat, DType::kFloat, DType::kHalf, DType::kBFloat16});
    run(implementation, random, s, is_double, dtype, static_cast<int>(random.below(3)), random.coin(0.4) ? 1 : 0);
  }
  Random random(3);
  for (const Shape s : {Shape{20001, 3, 1}, Shape{40001, 2, 2}, Shape{1, 200000, 1}, Shape{300, 1100, 1}, Shape{1, 100000, 2},
                        Shape{4, 0, 1}, Shape{4, 0, 3}, Shape{2, 3, 0}}) {
    run(implementation, random, s, false, DType::kFloat, 0, 0);
  }
}

void check_scale(Implementation& implementation) {
  Random random(11);
  for (const DType dtype : {DType::kFloat, DType::kDouble, DType::kHalf, DType::kBFloat16}) {
    for (const int64_t count : {0, 1, 3, 8, 17, 1000, 100003}) {
      for (const double by : {1.0, 0.5, -3.25}) {
        for (const Layout layout : {Layout::kDense, Layout::kShifted}) {
          Tensor t(*implementation.memory, dtype, 1, count, layout);
          t.fill([&] { return random.normal(); });
          const std::vector<unsigned char> before = t.image();
          implementation.scale(t.data(), dtype, count, by);
          t.download();
          bool ok = by != 1.0 || t.image() == before;
          const double stored = dtype == DType::kHalf ? 1e-3 : dtype == DType::kBFloat16 ? 8e-3 : 1e-7;
          for (int64_t i = 0; i < count; ++i)
            ok = ok && close(t.result(0, i), by * t.value(0, i), stored * std::fabs(by * t.value(0, i)) + 1e-7);
          tally.check(ok,
                      implementation.name + text(" scale dtype %d count %ld by %g", static_cast<int>(dtype), static_cast<long>(count), by));
        }
      }
    }
  }
}

}  // namespace native

// Mixtures dimension by dimension, and rows with weights of their own, against plain loops in double.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "group_cases.h"
#include "implementations.h"

namespace native {

namespace {

using vae_fast::MixtureArgs;
using vae_fast::MixtureBackwardArgs;
using vae_fast::MixtureFinishArgs;
using vae_fast::MixtureForwardArgs;

const double kLog2 = std::log(2.0), kLog2Pi = std::log(2.0 * std::acos(-1.0));

struct DimsCase {
  int64_t rows = 1, components = 1, dims = 1;
  bool is_double = false, by_row = false, factorized = true, joint = true;    // the last two: whose upstream gradients there are
  bool far = false, dead = false, nan = false, none = false, narrow = false;  // narrow: a component of no width to speak of
  bool with_x = true, with_sums = true, with_row_logits = true, spherical = false;
  DType dtype = DType::kFloat;
  Layout layout = Layout::kDense;

  double unit() const { return is_double ? 2.3e-16 : 1.2e-7; }
  DType compute() const { return is_double ? DType::kDouble : DType::kFloat; }
  std::string name() const {
    return text(" mixture dims%s dtype %d layout %d (%ld, %ld, %ld)%s%s%s%s%s%s%s%s%s%s%s", is_double ? " double" : "",
                static_cast<int>(dtype), static_cast<int>(layout), static_cast<long>(rows), static_cast<long>(components),
                static_cast<long>(dims), by_row ? " by row" : "", factorized ? " factorized" : "", joint ? " joint" : "", far ? " far" : "",
                dead ? " dead" : "", nan ? " nan" : "", none ? " none" : "", narrow ? " narrow" : "", with_x ? "" : " no x",
                with_sums ? "" : " no sums", with_row_logits ? "" : " no row logits");
  }
};

/// A sum and what rounding may do to it.
struct DimsSum {
  double value = 0.0, error = 0.0;
  void add(double term, double term_error) { value += term, error += term_error; }
};

/// Densities of one row (of one dimension, or joint): log w_k + log N of every component, and what rounding may do to it.
struct Shares {
  std::vector<double> l, error, q;
  double top = -HUGE_VAL, log_sum = 0.0, off = 0.0;
  bool dead = false;

  void finish() {
    double sum = 0.0;
    for (const double v : l) top = std::max(top, v);
    dead = top == -HUGE_VAL;
    for (const double v : l) sum += dead ? 0.0 : std::exp(v - top);
    for (size_t k = 0; k < l.size(); ++k) {
      q.push_back(dead ? 0.0 : std::exp(l[k] - top) / sum);
      if (q[k] > 1e-13) off = std::max(off, error[k]);
    }
    log_sum = dead ? -HUGE_VAL : top + std::log(sum);
  }
  /// Of q_k.
  double q_error(size_t k, double unit) const { return q[k] * std::min(1.0, error[k] + off + 32.0 * unit) + 1e-30; }
};

class DimsRun {
 public:
  DimsRun(Implementation& implementation, uint64_t seed, const DimsCase& given) : c(given), where(implementation.name + c.name()) {
    std::vector<std::vector<unsigned char>> images[2];
    for (int turn = 0; turn < 2; ++turn) {
      Random random(seed);
      if (implementation.disturb) implementation.disturb(static_cast<unsigned>(seed + 7 * turn));
      run(implementation, random, images[turn], turn == 0);
    }
    tally.check(c.nan || images[0] == images[1], where + ": another order of threads, another result");
  }

 private:
  const DimsCase c;
  const std::string where;
  int wrong = 0;

  void compare(const char* what, int64_t r, int64_t i, double got, double want, double tolerance) {
    if (close(got, want, tolerance) || ++wrong > 3) return;
    tally.check(false, where + text(" %s (%ld, %ld): %.9g, not %.9g (+- %.3g)", what, static_cast<long>(r), static_cast<long>(i), got, want,
                                    tolerance));
  }

  void run(Implementation& implementation, Random& random, std::vector<std::vector<unsigned char>>& images, bool checked) {
    Memory& memory = *implementation.memory;
    const int64_t n_count = c.rows, k_count = c.components, d_count = c.dims;
    const DType compute = c.compute();
    Tensor x(memory, c.dtype, n_count, d_count, c.layout), means(memory, compute, k_count, d_count),
        scale(memory, compute, k_count, d_count);
    Tensor constant(memory, compute, 1, k_count), dim_constant(memory, compute, k_count, d_count),
        row_weights(memory, compute, n_count, k_count);
    Tensor baseline(memory, DType::kDouble, 1, 1), dim_baseline(memory, DType::kDouble, 1, 1), log_w(memory, DType::kDouble, 1, k_count);
    Tensor joint(memory, compute, 1, n_count), product(memory, compute, 1, n_count), saved(memory, compute, 2 + 2 * d_count, n_count);
    Tensor grad_x(memory, c.dtype, n_count, d_count), counts(memory, DType::kDouble, 1, k_count);
    Tensor first(memory, DType::kDouble, k_count, d_count), second(memory, DType::kDouble, k_count, d_count);
    Tensor row_counts(memory, DType::kDouble, n_count, k_count), row_logits(memory, compute, n_count, k_count);
    Tensor grad_logits(memory, compute, 1, k_count), grad_means(memory, compute, k_count, d_count);
    Tensor grad_scale(memory, compute, c.spherical ? 1 : k_count, c.spherical ? k_count : d_count);

    x.fill([&] { return 1.5 * random.normal(); });
    means.fill([&] { return 1.5 * random.normal(); });
    scale.fill([&] { return std::exp(random.uniform(-0.5, 0.5)); });
    for (int64_t k = 0; c.spherical && k < k_count; ++k) {
      for (int64_t d = 1; d < d_count; ++d) scale.set(k, d, scale.value(k, 0));
    }
    const bool wide = c.dtype == DType::kFloat || c.dtype == DType::kDouble;
    const bool dense = c.layout <= Layout::kShifted || c.layout == Layout::kTwoBatchDims;
    for (int64_t n = 0; wide && dense && n < n_count; ++n) {
      for (int64_t d = 0; d < d_count; ++d) {
        if (c.far && random.coin(0.1)) x.set(n, d, random.coin() ? 70.0 : -70.0);
        if (c.dead && random.coin(0.05)) x.set(n, d, random.coin() ? 3.3e38 : -3.3e38);
        if (c.nan && n % 5 == 3 && d == n % d_count) x.set(n, d, std::nan(""));
      }
    }
    if (c.narrow) {
      for (int64_t d = 0; d < d_count; ++d) {
        scale.set(k_count / 2, d, c.is_double ? 1.7e308 : 3.3e38), means.set(k_count / 2, d, 1e6), x.set(0, d, 1e6);
        means.set(0, d, 1e6);  // in range there, which does not make a sum that has both
      }
    }
    // Log weights of every row, or of all, as the kernels get them: the largest constants are about 0.
    std::vector<double> common(static_cast<size_t>(k_count), 0.0);
    double all = 0.0;
    for (double& w : common) {
      w = c.none && k_count > 1 && random.coin(0.3) ? -HUGE_VAL : 2.0 * random.normal();
      all += std::exp(w);
    }
    if (all == 0.0) common[0] = 0.0, all = 1.0;
    for (int64_t k = 0; k < k_count; ++k) log_w.set(0, k, common[static_cast<size_t>(k)] -= std::log(all));
    for (int64_t n = 0; n < n_count; ++n) {
      double sum = 0.0;
      for (int64_t k = 0; k < k_count; ++k) {
        row_weights.set(n, k, c.none && k_count > 1 && k > 0 && random.coin(0.3) ? -HUGE_VAL : 2.0 * random.normal());
        sum += std::exp(row_weights.value(n, k));
      }
      for (int64_t k = 0; k < k_count; ++k) row_weights.set(n, k, row_weights.value(n, k) - std::log(sum));
    }
    std::vector<double> dim_top(static_cast<size_t>(d_count), -HUGE_VAL);
    double total_top = 0.0;
    const auto weight_of_all = [&](int64_t k) { return c.by_row ? 0.0 : common[static_cast<size_t>(k)]; };
    for (int64_t k = 0; k < k_count; ++k) {
      double sum = weight_of_all(k);
      for (int64_t d = 0; d < d_count; ++d) {
        const double own = weight_of_all(k) + std::log(scale.value(k, d));
        sum += std::log(scale.value(k, d));
        if (!c.narrow || k != k_count / 2) dim_top[static_cast<size_t>(d)] = std::max(dim_top[static_cast<size_t>(d)], own);
      }
      constant.set(0, k, sum);
    }
    for (double& top : dim_top) top = std::isfinite(top) ? top : 0.0, total_top += top;
    for (int64_t k = 0; k < k_count; ++k) {
      for (int64_t d = 0; d < d_count; ++d)
        dim_constant.set(k, d, (weight_of_all(k) + std::log(scale.value(k, d)) - dim_top[static_cast<size_t>(d)]) / kLog2);
      for (int64_t d = 0; c.narrow && k == k_count / 2 && d < d_count; ++d)
        dim_constant.set(k, d, d % 2 == 0 ? 130.0 : 1e30);  // of log stds of -90 and -1e30
    }
    baseline.set(0, 0, -0.5 * static_cast<double>(d_count) * (1.0 + kLog2Pi));
    dim_baseline.set(0, 0, total_top - 0.5 * static_cast<double>(d_count) * kLog2Pi);
    for (Tensor* t : {&x, &means, &scale, &constant, &dim_constant, &row_weights, &baseline, &dim_baseline, &log_w}) t->upload();
    const Upstream of_joint(random, memory, n_count, c.is_double), of_product(random, memory, n_count, c.is_double);

    MixtureArgs m;
    m.rows = n_count, m.components = k_count, m.dims = d_count, m.is_double = c.is_double;
    m.x = x.stream(), m.constant = constant.data(), m.means = means.data(), m.scale = scale.data();
    m.baseline = static_cast<const double*>(baseline.data());
    if (c.factorized) m.dim_constant = dim_constant.data(), m.dim_baseline = static_cast<const double*>(dim_baseline.data());
    if (c.by_row) m.row_weights = row_weights.data();
    const size_t size = c.is_double ? 8 : 4, row_bytes = static_cast<size_t>(n_count) * size;
    char* const normaliser = static_cast<char*>(saved.data());
    MixtureForwardArgs f;
    f.mixture = m;
    f.log_prob = joint.data(), f.shift = normaliser, f.total = normaliser + row_bytes;
    if (c.factorized) f.factorized = product.data(), f.dim_normaliser = normaliser + 2 * row_bytes;
    implementation.mixture(f);

    MixtureBackwardArgs b;
    b.mixture = m;
    b.shift = f.shift, b.total = f.total;
    b.grad.constant = b.factorized_grad.constant = 0.0;
    if (c.joint) of_joint.set(b.grad);
    if (c.factorized) of_product.set(b.factorized_grad), b.dim_normaliser = f.dim_normaliser;
    if (c.with_x) b.grad_x = grad_x.stream();
    if (c.by_row && c.with_row_logits) {
      if (implementation.cuda) {
        b.grad_row_logits = row_logits.data();
      } else {
        b.row_counts = static_cast<double*>(row_counts.data());
      }
    }
    if (c.with_sums) {
      b.counts = static_cast<double*>(counts.data());
      b.first = static_cast<double*>(first.data()), b.second = static_cast<double*>(second.data());
    }
    implementation.mixture_backward(b);
    MixtureFinishArgs finish;
    finish.spherical = c.spherical;
    finish.centred = !c.factorized;
    if (!c.by_row) finish.log_weights = static_cast<const double*>(log_w.data());
    finish.grad_logits = grad_logits.data(), finish.grad_means = grad_means.data(), finish.grad_log_std = grad_scale.data();
    b.counts = b.first = b.second = nullptr;
    b.finish = &finish;
    implementation.mixture_backward(b);
    for (Tensor* t :
         {&joint, &product, &grad_x, &counts, &first, &second, &row_counts, &row_logits, &grad_logits, &grad_means, &grad_scale}) {
      t->download();
      images.push_back(t->image());
    }
    if (!checked) return;

    const double unit = c.unit(), limit = c.is_double ? 1e308 : 3e38;
    const size_t pairs = static_cast<size_t>(k_count * d_count);
    std::vector<DimsSum> want_counts(static_cast<size_t>(k_count)), want_first(pairs), want_second(pairs);
    for (int64_t n = 0; n < n_count; ++n) {
      bool nan = false;
      Shares whole;
      std::vector<Shares> each(static_cast<size_t>(d_count));
      std::vector<double> u(pairs);
      for (int64_t k = 0; k < k_count; ++k) {
        const double w = c.by_row ? row_weights.value(n, k) : common[static_cast<size_t>(k)];
        double square = 0.0, error = 0.0;
        for (int64_t d = 0; d < d_count; ++d) {
          const double at = std::clamp(x.value(n, d), -farthest(c.is_double), farthest(c.is_double)), r = scale.value(k, d);
          const double one = (at - means.value(k, d)) * r;
          nan = nan || std::isnan(x.value(n, d));
          u[static_cast<size_t>(k * d_count + d)] = one;
          square += one * one;
          Shares& s = each[static_cast<size_t>(d)];
          const double common_part = dim_constant.value(k, d) * kLog2 + dim_top[static_cast<size_t>(d)];
          const double l = (c.by_row ? w : 0.0) + common_part - 0.5 * one * one - 0.5 * kLog2Pi;
          s.l.push_back(one * one > limit ? -HUGE_VAL : l);
          s.error.push_back(unit * (8.0 * one * one + 16.0 + 4.0 * std::fabs(dim_constant.value(k, d)) + 4.0 * std::fabs(w)));
          if (!std::isfinite(s.error.back())) s.error.back() = 1.0;
          error += unit * (8.0 * one * one + 8.0);
        }
        whole.l.push_back(square > limit
                              ? -HUGE_VAL
                              : constant.value(0, k) + (c.by_row ? w : 0.0) - 0.5 * square - 0.5 * static_cast<double>(d_count) * kLog2Pi);
        whole.error.push_back(error + unit * (16.0 + 4.0 * std::fabs(std::isfinite(w) ? w : 0.0) +
                                              4.0 * std::fabs(std::isfinite(constant.value(0, k)) ? constant.value(0, k) : 0.0)));
      }
      whole.finish();
      double sum = 0.0, sum_error = 0.0;
      for (Shares& s : each) s.finish(), sum += s.log_sum, sum_error += s.off + 16.0 * unit;
      if (!nan) compare("joint", n, 0, joint.result(0, n), whole.log_sum, whole.off + unit * (32.0 + 4.0 * std::fabs(whole.log_sum)));
      if (c.factorized)
        compare("product", n, 0, product.result(0, n), nan ? std::nan("") : sum,
                sum_error + 4.0 * unit * (std::fabs(sum) + std::fabs(total_top) + 1.0));
      const double g_joint = c.joint ? of_joint.of(n) : 0.0, g_product = c.factorized ? of_product.of(n) : 0.0;
      std::vector<DimsSum> own(static_cast<size_t>(k_count)), of_x(static_cast<size_t>(d_count));
      for (size_t k = 0; k < static_cast<size_t>(k_count); ++k) {
        const double q = g_joint * whole.q[k], q_error = std::fabs(g_joint) * whole.q_error(k, unit);
        own[k].add(q, q_error);
        for (size_t d = 0; d < static_cast<size_t>(d_count); ++d) {
          const size_t i = k * static_cast<size_t>(d_count) + d;
          const Shares& s = each[d];
          const double p = g_product * s.q[k], p_error = std::fabs(g_product) * s.q_error(k, unit), v = u[i],
                       r = scale.value(static_cast<int64_t>(k), static_cast<int64_t>(d));
          const double a = q + p, a_error = q_error + p_error + 4.0 * unit * (std::fabs(q) + std::fabs(p));
          own[k].add(p, p_error);
          if (a == 0.0) continue;
          want_first[i].add(a * v, std::fabs(v) * (a_error + 16.0 * unit * (std::fabs(q) + std::fabs(p))));
          want_second[i].add(a * (v * v - 1.0), (v * v + 1.0) * (a_error + 32.0 * unit * (std::fabs(q) + std::fabs(p))));
          of_x[d].add(-a * v * r, std::fabs(v * r) * (a_error + 32.0 * unit * (std::fabs(q) + std::fabs(p))));
        }
      }
      double total = 0.0, total_error = 0.0;
      for (size_t k = 0; k < static_cast<size_t>(k_count); ++k) {
        want_counts[k].add(own[k].value, own[k].error + 16.0 * unit * std::fabs(own[k].value));
        total += own[k].value, total_error += own[k].error + 8.0 * unit * std::fabs(own[k].value);
      }
      if (nan) continue;
      for (int64_t k = 0; c.by_row && c.with_row_logits && k < k_count; ++k) {
        const DimsSum& of_k = own[static_cast<size_t>(k)];
        const double w = std::exp(row_weights.value(n, k)), want = of_k.value - w * total;
        const double tolerance = of_k.error + w * total_error + 32.0 * unit * (std::fabs(of_k.value) + w * std::fabs(total)) + 1e-30;
        double got = row_logits.result(n, k);
        if (!implementation.cuda) {
          double counted = 0.0;
          for (int64_t j = 0; j < k_count; ++j) counted += row_counts.result(n, j);
          got = row_counts.result(n, k) - w * counted;
        }
        compare("row logits", n, k, got, want, tolerance);
      }
      for (int64_t d = 0; c.with_x && d < d_count; ++d) {
        const DimsSum& want = of_x[static_cast<size_t>(d)];
        if (overflows(want.value, c.dtype)) continue;
        compare("grad_x", n, d, grad_x.result(n, d), want.value,
                want.error + storing(c.dtype, want.value) + (c.is_double && c.dtype == DType::kFloat ? 1e-7 * std::fabs(want.value) : 0.0) +
                    1e-30);
      }
    }
    if (c.nan) return;
    double all_counts = 0.0, all_error = 0.0;
    for (const DimsSum& of_k : want_counts) all_counts += of_k.value, all_error += of_k.error;
    for (int64_t k = 0; k < k_count; ++k) {
      const DimsSum& of_k = want_counts[static_cast<size_t>(k)];
      if (c.with_sums) compare("count", k, 0, counts.result(0, k), of_k.value, of_k.error + 1e-30);
      const double w = c.by_row ? 0.0 : std::exp(common[static_cast<size_t>(k)]), want = of_k.value - w * all_counts;
      compare("grad_logits", k, 0, grad_logits.result(0, k), want, of_k.error + w * all_error + 4.0 * unit * std::fabs(want) + 1e-30);
      DimsSum of_scale;
      for (int64_t d = 0; d < d_count; ++d) {
        const DimsSum &one = want_first[static_cast<size_t>(k * d_count + d)], &two = want_second[static_cast<size_t>(k * d_count + d)];
        const double r = scale.value(k, d);
        if (c.with_sums && c.factorized) {
          compare("first", k, d, first.result(k, d), one.value, one.error + 1e-30);
          compare("second", k, d, second.result(k, d), two.value, two.error + 1e-30);
        }
        compare("grad_means", k, d, grad_means.result(k, d), one.value * r, (one.error + 4.0 * unit * std::fabs(one.value)) * r + 1e-30);
        if (!c.spherical)
          compare("grad_log_std", k, d, grad_scale.result(k, d), two.value, two.error + 4.0 * unit * std::fabs(two.value) + 1e-30);
        of_scale.add(two.value, two.error);
      }
      if (c.spherical)
        compare("grad_log_std", k, 0, grad_scale.result(0, k), of_scale.value,
                of_scale.error + 4.0 * unit * std::fabs(of_scale.value) + 1e-30);
    }
    tally.check(wrong == 0, where + text(": %d wrong", wrong));
  }
};

}  // namespace

void check_mixture_dims(Implementation& implementation, int rounds) {
  if (!implementation.mixture || !implementation.mixture_backward) return;
  for (int round = 0; round < 2 * rounds; ++round) {
    const uint64_t seed = static_cast<uint64_t>(91000 + round);
    Random random(seed);
    DimsCase c;
    c.is_double = random.coin(0.3);
    c.rows = random.one_of<int64_t>({0, 1, 3, 31, 64, 130, 257, 700});
    c.components = random.one_of<int64_t>({1, 2, 3, 7, 16, 17, 65, 100, 300});
    c.dims = random.one_of<int64_t>({1, 2, 3, 4, 5, 8, 10, 17, 33, 63, 65, 130});
    while (c.components > 3 && c.rows * c.components * c.dims > 150000) c.components /= 2;
    while (c.rows > 3 && c.rows * c.components * c.dims > 150000) c.rows /= 3;
    c.by_row = random.coin();
    c.factorized = !c.by_row || random.coin(0.8);
    c.joint = !c.factorized || random.coin();
    c.far = random.coin(0.3), c.dead = random.coin(0.2), c.nan = random.coin(0.1), c.none = random.coin(0.3);
    c.with_x = random.coin(0.8), c.with_row_logits = random.coin(0.8), c.with_sums = random.coin(0.8), c.spherical = random.coin(0.2);
    c.dtype = random.one_of({DType::kFloat, DType::kFloat, DType::kHalf, DType::kBFloat16});
    if (c.is_double && random.coin(0.7)) c.dtype = DType::kDouble;
    c.layout = draw_layout(random);
    // A double has room for the squares of floats, but a float none for what comes of them.
    if (c.is_double && c.dtype != DType::kDouble) c.dead = false;
    DimsRun(implementation, seed, c);
  }
  for (const bool by_row : {false, true}) {
    for (const bool joint : {false, true}) {
      DimsCase c;
      c.by_row = by_row, c.joint = joint;
      c.rows = 3001, c.components = 3, c.dims = 2;  // many pieces, and threads that share no components
      DimsRun(implementation, 1, c);
      c.rows = 5, c.components = 301, c.dims = 9;
      DimsRun(implementation, 2, c);
      c.rows = 300, c.components = 70, c.dims = 3, c.far = true;
      DimsRun(implementation, 3, c);
      c.narrow = true;
      DimsRun(implementation, 4, c);
      c.narrow = c.far = false;
      c.rows = 9, c.components = 20, c.dims = 130;  // tiles of dimensions
      DimsRun(implementation, 5, c);
    }
  }
}

}  // namespace native

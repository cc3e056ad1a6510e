// What mixtures' kernels are given for their parameters, and the gradients that their sums become, against plain loops.
#include <algorithm>
#include <cmath>
#include <limits>

#include "check.h"
#include "implementations.h"
#include "mixture_cases.h"

namespace native {

namespace {

using namespace mixtures;
using vae_fast::MixtureFinishArgs;
using vae_fast::MixtureParametersArgs;

struct Shape {
  int64_t components, dims;
  bool is_double, spherical, shared;  // shared: no logits
  int extreme;                        // 0: none; 1: weights of 0, widths out of range; 2: a NaN among the logits, 3: among the scales
  std::string name() const {
    return text(" mixture parameters (%ld, %ld)%s%s%s %d", static_cast<long>(components), static_cast<long>(dims),
                is_double ? " double" : "", spherical ? " spherical" : "", shared ? " no logits" : "", extreme);
  }
};

void check_prepared(Implementation& implementation, Random& random, const Shape& s) {
  const DType compute = s.is_double ? DType::kDouble : DType::kFloat;
  Memory& memory = *implementation.memory;
  const int64_t of_k = s.spherical ? 1 : s.dims;
  Tensor logits(memory, compute, 1, s.components), log_std(memory, compute, s.components, of_k),
      means(memory, compute, s.components, s.dims);
  Tensor log_weights(memory, DType::kDouble, 1, s.components), log_det(memory, DType::kDouble, 1, s.components);
  Tensor baseline(memory, DType::kDouble, 1, 1), centre(memory, DType::kFloat, 1, s.dims);
  Tensor scale(memory, compute, s.components, s.dims), constant(memory, compute, 1, s.components), low(memory, compute, 1, s.components);
  logits.fill([&] { return s.extreme == 1 && random.coin(0.2) ? -HUGE_VAL : 3.0 * random.normal(); });
  logits.set(0, s.components / 2, 0.5);
  log_std.fill([&] { return s.extreme == 1 && random.coin(0.1) ? random.one_of({-1e30, -200.0, 200.0}) : random.normal(); });
  for (int64_t d = 0; s.extreme == 1 && d < of_k; ++d) log_std.set(s.components - 1, d, 1e30);
  means.fill([&] { return 5.0 + random.normal(); });
  if (s.extreme == 2) logits.set(0, 0, std::nan(""));
  if (s.extreme == 3) log_std.set(s.components - 1, 0, std::nan(""));
  for (Tensor* t : {&logits, &log_std, &means}) t->upload();
  MixtureParametersArgs a;
  a.components = s.components, a.dims = s.dims, a.is_double = s.is_double, a.spherical = s.spherical;
  if (!s.shared) a.logits = logits.data();
  a.log_std = log_std.data(), a.means = means.data();
  a.log_weights = static_cast<double*>(log_weights.data()), a.log_det = static_cast<double*>(log_det.data());
  a.scale = scale.data(), a.constant = constant.data(), a.constant_low = low.data();
  a.baseline = static_cast<double*>(baseline.data()), a.centre = static_cast<float*>(centre.data());
  implementation.mixture_parameters(a);
  for (Tensor* t : {&log_weights, &log_det, &scale, &constant, &low, &baseline, &centre}) t->download();

  const std::string where = implementation.name + s.name();
  double sum = 0.0, top = -HUGE_VAL;
  for (int64_t k = 0; k < s.components; ++k) sum += std::exp(logits.value(0, k));
  bool fine = true, nan = s.extreme >= 2;
  std::vector<double> want_weight, want_det;
  for (int64_t k = 0; k < s.components; ++k) {
    double det = 0.0;
    for (int64_t d = 0; d < s.dims; ++d) {
      const double log = log_std.value(k, s.spherical ? 0 : d), most = s.is_double ? 709.78 : 88.72, least = s.is_double ? -744.4 : -103.27;
      det -= log;
      const double want = std::isnan(log) ? log : std::exp(std::clamp(-log, least, most));
      // of the least one above 0 there is one bit
      const double smallest = s.is_double ? 1e-320 : 2e-45;
      fine = fine && close(scale.result(k, d), want, std::fabs(want) * (s.is_double ? 1e-15 : 7e-8) + smallest) &&
             (std::isnan(want) || (scale.result(k, d) > 0.0 && std::isfinite(scale.result(k, d))));
    }
    want_det.push_back(det);
    want_weight.push_back(s.shared ? 0.0 : logits.value(0, k) - std::log(sum));
    const double all = want_weight.back() + det;
    if (std::isnan(all)) top = all;
    if (!std::isnan(top) && all <= 1e8) top = std::max(top, all);
  }
  tally.check(fine, where + ": scale");
  if (!std::isfinite(top)) top = 0.0;
  top = std::max(top, -1e8);
  const double log_2pi = std::log(2.0 * std::acos(-1.0)), half = 0.5 * static_cast<double>(s.dims);
  fine = close(baseline.result(0, 0), top - half * (1.0 + log_2pi), 1e-12 * (1.0 + std::fabs(top) + half));
  tally.check(fine, where + ": baseline");
  fine = true;
  for (int64_t k = 0; k < s.components; ++k) {
    const size_t i = static_cast<size_t>(k);
    const double largest = s.is_double ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max();
    const double relative = std::min(want_weight[i] + want_det[i] - top, largest), got = constant.result(0, k) + low.result(0, k);
    fine = fine && close(log_weights.result(0, k), want_weight[i], 1e-13 * (1.0 + std::fabs(want_weight[i])));
    fine = fine && std::isfinite(low.result(0, k));
    if (std::isnan(relative) || relative < -largest) {
      fine = fine && (std::isnan(relative) ? std::isnan(got) : got == -HUGE_VAL);
    } else {
      fine = fine && close(got, relative, 1e-14 * std::fabs(relative) + 1e-13 * (1.0 + std::fabs(want_det[i]) + std::fabs(top)));
    }
  }
  tally.check(fine, where + ": constants");
  fine = true;
  for (int64_t d = 0; d < s.dims && !nan && !s.shared; ++d) {
    double want = 0.0;
    for (int64_t k = 0; k < s.components; ++k) want += std::exp(want_weight[static_cast<size_t>(k)]) * means.value(k, d);
    fine = fine && close(centre.result(0, d), want, 1e-6 * std::fabs(want));
  }
  tally.check(fine, where + ": centre");
}

/// The gradients of a backward pass beside what its own sums make of them.
void check_finish(Implementation& implementation, Random& random, const Shape& s, int64_t rows, bool given, bool with_scale) {
  Case c;
  c.rows = rows, c.components = s.components, c.dims = s.dims, c.is_double = s.is_double, c.given = given;
  if (s.is_double) c.dtype = DType::kDouble;
  Memory& memory = *implementation.memory;
  Data data(c, memory, random, c.dtype, Layout::kDense);
  MixtureForwardArgs f;
  f.mixture = data.args();
  f.shift = data.shift.data(), f.total = data.total.data();
  implementation.mixture(f);
  MixtureBackwardArgs b = data.backward_args();
  b.grad_x = {};
  implementation.mixture_backward(b);
  for (Tensor* t : {&data.counts, &data.first, &data.second}) t->download();

  Tensor log_weights(memory, DType::kDouble, 1, c.components), of_logits(memory, c.compute(), 1, c.components);
  Tensor of_means(memory, c.compute(), c.components, c.dims), of_scale(memory, c.compute(), c.components, s.spherical ? 1 : c.dims);
  log_weights.fill([&] { return -3.0 + random.normal(); });
  log_weights.upload();
  MixtureFinishArgs finish;
  finish.spherical = s.spherical;
  finish.centred = !s.shared;
  if (!given) finish.log_weights = static_cast<const double*>(log_weights.data());
  finish.grad_logits = of_logits.data(), finish.grad_means = of_means.data();
  if (with_scale) finish.grad_log_std = of_scale.data();
  b.counts = b.first = b.second = nullptr;
  b.finish = &finish;
  implementation.mixture_backward(b);
  for (Tensor* t : {&of_logits, &of_means, &of_scale}) t->download();

  const double unit = s.is_double ? 1e-13 : 2e-7;
  double all = 0.0, size = 1e-300;
  for (int64_t k = 0; k < c.components; ++k) all += data.counts.result(0, k), size += std::fabs(data.counts.result(0, k));
  bool logits = true, means = true, scales = true;
  for (int64_t k = 0; k < c.components; ++k) {
    const double count = data.counts.result(0, k);
    const double want = given ? count : count - std::exp(log_weights.value(0, k)) * all;
    logits = logits && close(of_logits.result(0, k), want, unit * (std::fabs(want) + std::fabs(count)) + 1e-13 * size + 2e-45);
    double sum = 0.0, sizes = 0.0;
    for (int64_t d = 0; d < c.dims; ++d) {
      const double mean = data.first.result(k, d) * data.scale.value(k, d), less = finish.centred ? count : 0.0;
      means = means && close(of_means.result(k, d), mean, unit * std::fabs(mean) + 2e-45);
      const double second = data.second.result(k, d) - less;
      sum += second, sizes += std::fabs(second) + std::fabs(less);
      if (with_scale && !s.spherical)
        scales = scales && close(of_scale.result(k, d), second, unit * std::fabs(second) + 1e-14 * std::fabs(count) + 2e-45);
    }
    if (with_scale && s.spherical) scales = scales && close(of_scale.result(k, 0), sum, unit * std::fabs(sum) + 1e-14 * sizes + 2e-45);
  }
  const std::string where = implementation.name + s.name() + text(" finish, %ld rows%s", static_cast<long>(rows), given ? " given" : "");
  tally.check(logits, where + ": logits");
  tally.check(means, where + ": means");
  tally.check(scales, where + ": scales");
}

/// Kernels of a forward and a backward pass for every gradient: parameters, densities; responsibilities, moments, x, the rest.
void check_launches(Implementation& implementation, Random& random) {
  if (!implementation.launches) return;
  const long start = implementation.launches();
  Shape s{7, 5, false, false, false, 0};
  check_prepared(implementation, random, s);
  const long prepare = implementation.launches() - start;
  Case c;
  c.rows = 300, c.components = 7, c.dims = 5;
  Data data(c, *implementation.memory, random, c.dtype, Layout::kDense);
  MixtureForwardArgs f;
  f.mixture = data.args();
  f.log_prob = data.log_prob.data(), f.shift = data.shift.data(), f.total = data.total.data();
  implementation.mixture(f);
  MixtureBackwardArgs b = data.backward_args();
  MixtureFinishArgs finish;
  finish.grad_logits = data.constant_low.data(), finish.grad_means = data.first.data(), finish.grad_log_std = data.second.data();
  b.counts = b.first = b.second = nullptr;
  b.finish = &finish;
  implementation.mixture_backward(b);
  const long all = implementation.launches() - start;
  tally.check(prepare == 1 && all == 6, implementation.name + text(" mixture: %ld kernels, of them %ld before the first", all, prepare));
}

}  // namespace

void check_mixture_parameters(Implementation& implementation, int rounds) {
  if (!implementation.mixture_parameters) return;
  Random random(1);
  check_launches(implementation, random);
  for (int round = 0; round < rounds; ++round) {
    Random random(static_cast<uint64_t>(9000 + round));
    if (implementation.disturb) implementation.disturb(static_cast<unsigned>(round));
    Shape s;
    s.components = random.one_of({1, 2, 3, 7, 16, 31, 64, 100, 257, 600});
    s.dims = random.one_of({1, 2, 5, 16, 31, 33, 64, 130, 300});
    s.is_double = random.coin(0.3), s.spherical = random.coin(0.3), s.shared = random.coin(0.2);
    s.extreme = random.coin(0.5) ? 0 : random.one_of({1, 1, 2, 3});
    check_prepared(implementation, random, s);
    while (s.components > 3 && s.components * s.dims > 1500) s.components /= 2;
    s.extreme = 0;
    check_finish(implementation, random, s, random.one_of({1, 40, 130, 300}), random.coin(0.3), random.coin(0.7));
  }
}

}  // namespace native

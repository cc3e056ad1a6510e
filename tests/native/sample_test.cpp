// Sampling, its KL and the gradients of both against the formulas in double.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "implementations.h"
#include "reference.h"

namespace native {

namespace {

using vae_fast::SampleArgs;
using vae_fast::SampleBackwardArgs;
using vae_fast::TermArgs;

/// The tensors of one call, forward and backward.
struct Case {
  std::string label;
  int64_t samples, rows, columns;
  int form;
  bool is_double, with_kl, with_prior, noise_given;
  double floor, coefficient;
  DType result;
  vae_fast::Bound bound;
  uint64_t seed, offset;
  std::unique_ptr<Tensor> mu, scale, prior_mu, prior_scale, noise, z, grad_z, grad_kl;
};

using Made = std::unique_ptr<Tensor>;

double draw_scale(Random& random, int form) {
  return form < 2 ? 0.7 * random.normal() : form < 4 ? std::exp(0.5 * random.normal()) : 2.0 * random.normal();
}

Case draw_case(Random& random, Memory& memory) {
  Case c;
  c.is_double = random.coin(0.2);
  c.samples = random.one_of({1, 1, 2, 3, 70});
  c.rows = random.one_of({0, 1, 2, 5, 12, 33});
  c.columns = random.one_of({1, 2, 3, 4, 5, 8, 20, 21, 32, 64, 130, 300, 1100});
  if (c.samples * c.rows * c.columns > 30000) c.samples = 1;
  if (random.coin(0.03)) c.columns = 0;
  c.form = static_cast<int>(random.below(5));
  c.with_kl = random.coin(0.6);
  c.with_prior = c.with_kl && random.coin(0.4);
  c.noise_given = random.coin(0.3);
  c.floor = random.coin(0.3) ? 0.2 : -HUGE_VAL;
  c.coefficient = random.one_of({1.0, -2.0});
  c.seed = random.engine();
  c.offset = random.engine() & ~uint64_t{3};
  const bool plain = random.coin();
  const DType common = c.is_double ? DType::kDouble : random.one_of({DType::kFloat, DType::kFloat, DType::kHalf, DType::kBFloat16});
  const auto dtype = [&] { return c.is_double || plain ? common : random.one_of({DType::kFloat, DType::kHalf, DType::kBFloat16}); };
  const auto layout = [&] {
    return plain ? random.one_of({Layout::kDense, Layout::kPadded}) : static_cast<Layout>(random.below(kLayouts));
  };
  const auto make = [&](int64_t rows, Layout l, auto&& draw) {
    Made t = std::make_unique<Tensor>(memory, dtype(), rows, c.columns, l);
    t->fill(draw);
    return t;
  };
  c.mu = make(c.rows, layout(), [&] { return random.normal(); });
  c.scale = make(c.rows, layout(), [&] { return draw_scale(random, c.form); });
  if (c.with_prior) {
    c.prior_mu = make(c.rows, layout(), [&] { return random.normal(); });
    c.prior_scale = make(c.rows, layout(), [&] { return draw_scale(random, c.form); });
  }
  const int64_t all = c.samples * c.rows;
  if (c.noise_given) c.noise = make(all, layout(), [&] { return random.normal(); });
  c.result = dtype();
  c.z = std::make_unique<Tensor>(memory, c.result, all, c.columns);
  if (random.coin(0.8)) c.grad_z = make(all, layout(), [&] { return random.normal(); });
  if (random.coin()) {
    c.grad_kl = std::make_unique<Tensor>(memory, c.is_double ? DType::kDouble : DType::kFloat, 1, std::max<int64_t>(1, c.rows));
    c.grad_kl->fill([&] { return random.normal(); });
  }
  c.label = text("%s samples %ld rows %ld columns %ld form %d%s%s%s%s", c.is_double ? " double" : "", static_cast<long>(c.samples),
                 static_cast<long>(c.rows), static_cast<long>(c.columns), c.form, plain ? " plain" : "", c.with_kl ? " kl" : "",
                 c.with_prior ? " prior" : "", c.noise_given ? " noise" : "");
  return c;
}

HeldScale scale_at(const Case& c, int64_t r, int64_t k) { return {c.bound, c.scale->value(r, k)}; }

double noise_at(const Case& c, int64_t q, int64_t k) {
  return c.noise_given ? c.noise->value(q, k) : normal_of(c.seed, c.offset, static_cast<uint64_t>(q * c.columns + k));
}

TermArgs kl_args(const Case& c) {
  TermArgs kl;
  kl.term = kl_of(c.form, c.with_prior).index;
  kl.is_double = c.is_double;
  kl.columns = c.columns;
  kl.param[0] = c.floor;
  kl.coefficient = c.coefficient;
  kl.in[0] = c.mu->stream();
  kl.in[1] = c.scale->stream();
  if (c.with_prior) {
    kl.in[2] = c.prior_mu->stream();
    kl.in[3] = c.prior_scale->stream();
  }
  return kl;
}

Element kl_element(const Case& c, int64_t r, int64_t k) {
  const HeldScale scale = scale_at(c, r, k);
  const double in[4] = {c.mu->value(r, k), scale.value, c.with_prior ? c.prior_mu->value(r, k) : 0.0,
                        c.with_prior ? c.prior_scale->value(r, k) : 0.0};
  Element e = evaluate(kl_of(c.form, c.with_prior), in, {c.floor, 0.0});
  e.magnitude += size_of(c.bound) * std::fabs(e.d[1]);
  e.d[1] *= scale.slope;
  return e;
}

double stored(double v, DType dtype) {
  return dtype == DType::kHalf ? 1e-3 * std::fabs(v) + 1e-7 : dtype == DType::kBFloat16 ? 8e-3 * std::fabs(v) : 0.0;
}

void run_forward(Implementation& implementation, Case& c, bool through_pointers) {
  Memory& memory = *implementation.memory;
  Tensor kl(memory, c.is_double ? DType::kDouble : DType::kFloat, 1, c.rows);
  // Sizes of int64 travel as raw blocks: an offset of the generator and the saved state.
  Block state(memory, 16), generator(memory, 16);
  const uint64_t poison[2] = {~uint64_t{0}, ~uint64_t{0}};
  state.write(poison);
  SampleArgs args;
  args.samples = c.samples;
  args.rows = c.rows;
  args.columns = c.columns;
  args.is_double = c.is_double;
  args.form = c.form;
  args.mu = c.mu->stream();
  args.scale = c.scale->stream();
  args.bound = c.bound;
  if (c.noise_given) args.noise = c.noise->stream();
  if (through_pointers) {
    const uint64_t held[2] = {c.seed, c.offset - 8};
    generator.write(held);
    args.philox.seed_at = static_cast<const int64_t*>(generator.data());
    args.philox.offset_at = args.philox.seed_at + 1;
    args.philox.offset = 8;
  } else {
    args.philox.seed = c.seed;
    args.philox.offset = c.offset;
  }
  args.rng_state = static_cast<int64_t*>(state.data());
  args.z = c.z->stream();
  args.with_kl = c.with_kl;
  if (c.with_kl) {
    args.kl = kl_args(c);
    args.kl_value = kl.data();
  }
  implementation.sample(args);
  c.z->download();
  kl.download();
  uint64_t saved[2];
  state.read(saved);

  const std::string where = implementation.name + " sample" + c.label;
  int bad = 0;
  std::string first;
  const double unit = c.is_double ? 5e-7 : 3e-6;  // the noise itself is float: 2e-7 of at most 6.7
  for (int64_t q = 0; q < c.samples * c.rows; ++q) {
    for (int64_t k = 0; k < c.columns; ++k) {
      const int64_t r = q % c.rows;
      const double std = std_of(c.form, scale_at(c, r, k).value), noise = noise_at(c, q, k), want = c.mu->value(r, k) + std * noise;
      const double got = c.z->result(q, k);
      if (close(got, want, unit * (std::fabs(c.mu->value(r, k)) + std * (1.0 + std::fabs(noise))) + stored(want, c.result))) continue;
      if (++bad == 1) first = text(" z(%ld, %ld) %.9g, not %.9g", static_cast<long>(q), static_cast<long>(k), got, want);
    }
  }
  tally.check(bad == 0, where + first);
  if (c.samples * c.rows > 0) tally.check(saved[0] == c.seed && saved[1] == c.offset, where + " saved state");
  if (!c.with_kl) return;
  bad = 0;
  for (int64_t r = 0; r < c.rows; ++r) {
    double want = 0.0, magnitude = 0.0;
    for (int64_t k = 0; k < c.columns; ++k) {
      const Element e = kl_element(c, r, k);
      want += c.coefficient * e.value;
      magnitude += std::fabs(c.coefficient) * e.magnitude;
    }
    if (!close(kl.result(0, r), want, (c.is_double ? 2e-14 : 2e-6) * magnitude) && ++bad == 1)
      first = text(" kl(%ld) %.9g, not %.9g", static_cast<long>(r), kl.result(0, r), want);
  }
  tally.check(bad == 0, where + first);
}

void run_backward(Implementation& implementation, Case& c, Random& random) {
  Memory& memory = *implementation.memory;
  const auto layout = [&] {
    return random.one_of({Layout::kDense, Layout::kDense, Layout::kPadded, Layout::kOddPadded, Layout::kShifted});
  };
  Made grad[4];
  const Tensor* of[4] = {c.mu.get(), c.scale.get(), c.prior_mu.get(), c.prior_scale.get()};
  const bool same = random.coin(0.7);
  for (int i = 0; i < (c.with_prior ? 4 : 2); ++i) {
    if (random.coin(0.85)) grad[i] = std::make_unique<Tensor>(memory, of[i]->dtype(), c.rows, c.columns, same ? Layout::kDense : layout());
  }
  SampleBackwardArgs args;
  args.samples = c.samples;
  args.rows = c.rows;
  args.columns = c.columns;
  args.is_double = c.is_double;
  args.form = c.form;
  args.mu = c.mu->stream();
  args.scale = c.scale->stream();
  args.bound = c.bound;
  if (c.noise_given) args.noise = c.noise->stream();
  args.philox.seed = c.seed;
  args.philox.offset = c.offset;
  if (c.grad_z != nullptr) args.grad_z = c.grad_z->stream();
  if (grad[0] != nullptr) args.grad_mu = grad[0]->stream();
  if (grad[1] != nullptr) args.grad_scale = grad[1]->stream();
  args.with_kl = c.with_kl;
  if (c.with_kl) {
    args.kl = kl_args(c);
    args.kl.row_grad.constant = -0.5;
    if (c.grad_kl != nullptr) args.kl.row_grad.data = c.grad_kl->data();
    for (int i = 2; i < 4; ++i) {
      if (grad[i] != nullptr) args.kl.grad[i] = grad[i]->stream();
    }
  }
  implementation.sample_backward(args);
  for (Made& g : grad) {
    if (g != nullptr) g->download();
  }

  int bad = 0;
  std::string first;
  for (int64_t r = 0; r < c.rows; ++r) {
    const double g_kl = !c.with_kl ? 0.0 : -0.5 * (c.grad_kl != nullptr ? c.grad_kl->value(0, r) : 1.0);
    for (int64_t k = 0; k < c.columns; ++k) {
      double want[4] = {}, magnitude[4] = {};
      const HeldScale scale = scale_at(c, r, k);
      const double d_std = scale.slope * d_std_of(c.form, scale.value);
      for (int64_t s = 0; s < c.samples && c.grad_z != nullptr; ++s) {
        const int64_t q = s * c.rows + r;
        const double g = c.grad_z->value(q, k), n = noise_at(c, q, k);
        want[0] += g;
        magnitude[0] += std::fabs(g);
        want[1] += d_std * g * n;
        magnitude[1] += std::fabs(d_std * g) * (1.0 + std::fabs(n));
      }
      if (c.with_kl) {
        const Element e = kl_element(c, r, k);
        for (int i = 0; i < 4; ++i) {
          want[i] += g_kl * e.d[i];
          magnitude[i] += std::fabs(g_kl) * (std::fabs(e.d[i]) + 1.0) * (c.is_double ? 1.0 : 3.0);
        }
      }
      for (int i = 0; i < 4; ++i) {
        if (grad[i] == nullptr) continue;
        const double got = grad[i]->result(r, k);
        if (overflows(want[i], grad[i]->dtype()) && std::isinf(got)) continue;
        if (close(got, want[i], (c.is_double ? 1e-6 : 4e-6) * magnitude[i] + stored(want[i], grad[i]->dtype()))) continue;
        if (++bad == 1) first = text(" grad %d (%ld, %ld) %.9g, not %.9g", i, static_cast<long>(r), static_cast<long>(k), got, want[i]);
      }
    }
  }
  tally.check(bad == 0, implementation.name + " sample_backward" + c.label + first);
}

}  // namespace

void check_sample(Implementation& implementation, int rounds) {
  for (int round = 0; round < 5 * rounds; ++round) {
    Random random(static_cast<uint64_t>(1000 + round));
    if (implementation.disturb) implementation.disturb(static_cast<unsigned>(round));
    Case c = draw_case(random, *implementation.memory);
    run_forward(implementation, c, round % 2 == 1);
    run_backward(implementation, c, random);
    if (!!implementation.cuda) continue;
    c.bound = draw_bound(random, kl_of(c.form, false));
    c.label += " bounds";
    run_forward(implementation, c, round % 2 == 1);
    run_backward(implementation, c, random);
  }
  // More rows than the grid has places for, at both quads that fit blocks and quads that straddle them.
  for (const int64_t columns : {4, 3}) {
    Random random(static_cast<uint64_t>(columns));
    Case c = draw_case(random, *implementation.memory);
    c.samples = 2;
    c.rows = 9001;
    c.columns = columns;
    c.with_kl = true;
    c.with_prior = c.noise_given = c.is_double = false;
    c.grad_kl = nullptr;
    c.result = DType::kFloat;
    const auto make = [&](int64_t rows) {
      Made t = std::make_unique<Tensor>(*implementation.memory, DType::kFloat, rows, columns);
      t->fill([&] { return random.uniform(0.5, 1.5); });
      return t;
    };
    c.mu = make(c.rows);
    c.scale = make(c.rows);
    c.z = make(c.samples * c.rows);
    c.grad_z = make(c.samples * c.rows);
    c.label = text(" many rows of %ld", static_cast<long>(columns));
    run_forward(implementation, c, false);
    run_backward(implementation, c, random);
  }
}

}  // namespace native

// Row sums, gradients and losses of every term against the formulas in double, over data types, sizes and layouts drawn at random.
#include <cmath>

#include "row_terms_cases.h"

namespace native {

void check_row_terms(Implementation& implementation, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    for (const TermName& term : terms()) {
      Random random(static_cast<uint64_t>(round) * terms().size() + static_cast<uint64_t>(term.index));
      if (implementation.disturb) implementation.disturb(static_cast<unsigned>(round));
      Case c = draw_case(random, *implementation.memory, term);
      run(implementation, c);
      if (!!implementation.cuda) continue;
      Case bounded = draw_case(random, *implementation.memory, term);
      for (Term& t : bounded.terms) {
        if (t.name.form >= 0) t.args.bound = draw_bound(random, t.name);
      }
      bounded.label += " bounds";
      run(implementation, bounded);
    }
  }
}

/// A floor and a factor that lie in memory count as those in the arguments; a factor that is a power of two is left to the one who
/// multiplies.
void check_numbers_in_memory(Implementation& implementation) {
  Memory& memory = *implementation.memory;
  const TermName& kl = term_named("kl.logvar");
  const double numbers[2] = {0.3, 0.7};
  Block floor(memory, sizeof(double)), scale(memory, sizeof(double)), factor(memory, sizeof(float));
  floor.write(&numbers[0]);
  scale.write(&numbers[1]);
  for (const int64_t rows : {1, 7, 300}) {
    std::vector<unsigned char> images[2];
    for (const bool in_memory : {false, true}) {
      Random random(5);
      Case c = plain_case(memory, kl, rows, 20, [&](int i) { return draw_input(random, kl, i); });
      Tensor value(memory, DType::kFloat, 1, rows), loss(memory, DType::kFloat, 1, 1);
      RowTermsArgs args;
      args.rows = rows;
      args.value = value.data();
      args.loss = loss.data();
      args.term[0] = c.terms[0].args;
      args.term[0].coefficient = in_memory ? -1.0 : -numbers[1];
      args.term[0].row_grad.constant = in_memory ? 2.0 : 2.0 * numbers[1];
      if (in_memory) {
        args.term[0].param_at = static_cast<const double*>(floor.data());
        args.term[0].scale_at = static_cast<const double*>(scale.data());
      } else {
        args.term[0].param[0] = numbers[0];
      }
      implementation.row_terms(args);
      for (Tensor* t : {&value, &loss, c.terms[0].grad[0].get(), c.terms[0].grad[1].get()}) {
        t->download();
        images[in_memory].insert(images[in_memory].end(), t->image().begin(), t->image().end());
      }
    }
    tally.check(images[0] == images[1], implementation.name + text(" row_terms: numbers in memory, rows %ld", static_cast<long>(rows)));
  }
  for (const float by : {1.0f, 2.0f, 0.25f, -4.0f, 0.0f, 3.0f, 1e-45f, HUGE_VALF}) {
    Random random(6);
    Case c = plain_case(memory, kl, 5, 20, [&](int i) { return draw_input(random, kl, i); });
    factor.write(&by);
    Tensor& grad = *c.terms[0].grad[0];
    grad.fill([] { return 17.0; });
    RowTermsArgs args;
    args.unless_power_of_two = factor.data();
    launch(implementation, c, nullptr, args);
    int exponent = 0;
    const bool power = std::isnormal(by) && std::fabs(std::frexp(by, &exponent)) == 0.5f;
    int kept = 0;
    for (int64_t i = 0; i < 100; ++i) kept += grad.result(i / 20, i % 20) == 17.0;
    tally.check(kept == (power ? 100 : 0),
                implementation.name + text(" row_terms unless %g is a power of two: %d kept", static_cast<double>(by), kept));
  }
}

void check_row_terms_edges(Implementation& implementation) {
  Memory& memory = *implementation.memory;
  check_numbers_in_memory(implementation);
  Random random(7);
  // More rows than the grid has places for, and rows long enough that a float sum would drift.
  const TermName& logits = term_named("bernoulli_logits.none");
  for (const char* const called : {"kl.logvar", "bernoulli_logits.none"}) {
    const TermName& name = term_named(called);
    Case many = plain_case(memory, name, 40001, 4, [&](int i) { return draw_input(random, name, i); });
    run(implementation, many);
    Case longer = plain_case(memory, name, 3, 300001, [&](int i) { return draw_input(random, name, i); });
    run(implementation, longer);
    Case aligned = plain_case(memory, name, 2, 65536, [&](int i) { return draw_input(random, name, i); });
    run(implementation, aligned);
  }
  // Blocks that take several long rows one after another.
  for (unsigned disturbance = 0; disturbance < 3; ++disturbance) {
    if (implementation.disturb) implementation.disturb(disturbance);
    Case c = plain_case(memory, logits, 300, 4100, [&](int i) { return draw_input(random, logits, i); });
    run(implementation, c);
  }
  // Extremes: no NaN from what is finite, nor from what bounds make of it.
  for (size_t i = 0, count = terms().size(); i < (!implementation.cuda ? 9 : 1) * count; ++i) {
    const TermName& name = terms()[i % count];
    if (i >= count && name.form < 0) continue;
    Case c = plain_case(memory, name, 16, 24, [&](int i) {
      if (name.is_scale(i))
        return name.form < 2   ? random.one_of({-400.0, -89.0, -40.0, 0.0, 40.0, 178.0, 3e38})
               : name.form < 4 ? random.one_of({1e-45, 1e-39, 1e-12, 1.0, 1e12, 3e38})
                               : random.one_of({-400.0, -80.0, 0.0, 1e4, 3e38});
      if (name.family == "student_t" && i == 2) return random.one_of({1e-2, 1.0, 1e3, 1e8});
      if (name.family == "bernoulli_logits" || name.family == "continuous_bernoulli")
        return i == 0 ? random.one_of({0.0, 0.3, 1.0}) : random.one_of({-1e4, -100.0, 0.0, 100.0, 1e4});
      if (name.family == "bernoulli_probs")
        return i == 0 ? random.one_of({0.0, 1.0})
                      : (name.clip == 0 ? random.one_of({0.25, 0.5, 1e-6}) : random.one_of({0.0, 1e-6, 0.5, 1.0}));
      if (name.is_of_counts() && i == 0) return random.one_of({0.0, 0.0, 1.0, 2.0, 1e6});
      if (name.is_of_counts() && i < 3 && !name.is_log()) return random.one_of({0.0, 1e-39, 1e-6, 1.0, 1e8, 3e38});
      return random.one_of({-3e38, -1e3, 0.0, 1e-39, 1e3, 3e38});
    });
    if (i >= count) c.terms[0].args.bound = draw_bound(random, name);
    Tensor value(memory, DType::kFloat, 1, c.rows);
    launch(implementation, c, &value);
    bool nan = false;
    for (int64_t r = 0; r < c.rows; ++r) nan = nan || std::isnan(value.result(0, r));
    for (auto& g : c.terms[0].grad) {
      for (int64_t i = 0; g != nullptr && i < c.rows * 24; ++i) nan = nan || std::isnan(g->result(i / 24, i % 24));
    }
    tally.check(!nan, implementation.name + " " + name.name + ": NaN at extremes");
  }
  // NaN stays in its own row, whichever input it comes in.
  for (const TermName& name : terms()) {
    Case c = plain_case(memory, name, 9, 20, [&](int i) { return draw_input(random, name, i); });
    c.terms[0].in[1]->set(4, 13, std::nan(""));
    c.terms[0].in[1]->upload();
    Tensor value(memory, DType::kFloat, 1, c.rows);
    launch(implementation, c, &value);
    bool ok = true;
    for (int64_t r = 0; r < c.rows; ++r) ok = ok && std::isnan(value.result(0, r)) == (r == 4);
    for (auto& g : c.terms[0].grad) {
      for (int64_t i = 0; g != nullptr && i < c.rows * 20; ++i) ok = ok && (i == 4 * 20 + 13 || !std::isnan(g->result(i / 20, i % 20)));
    }
    tally.check(ok, implementation.name + " " + name.name + ": NaN leaves its row or is lost");
  }
  // The same bits whatever the order of threads and blocks.
  std::vector<unsigned char> first;
  for (unsigned disturbance = 0; disturbance < 4; ++disturbance) {
    if (implementation.disturb) implementation.disturb(disturbance);
    Random same(99);
    Case c = plain_case(memory, logits, 500, 100, [&](int i) { return draw_input(same, logits, i); });
    Tensor loss(memory, DType::kFloat, 1, 1);
    RowTermsArgs args;
    args.rows = c.rows;
    args.loss = loss.data();
    args.term[0] = c.terms[0].args;
    implementation.row_terms(args);
    loss.download();
    if (disturbance == 0) first = loss.image();
    tally.check(loss.image() == first, implementation.name + " loss depends on the order of threads");
  }
}

void check_huge(Implementation& implementation) {
  Memory& memory = *implementation.memory;
  const int64_t columns = (int64_t{1} << 31) + 64;
  // One row of bytes, read three times as if there were three rows.
  {
    Block x(memory, static_cast<size_t>(columns));
    std::vector<unsigned char> ones(static_cast<size_t>(columns), 1);
    x.write(ones.data());
    Tensor logit(memory, DType::kFloat, 1, 1, Layout::kScalar), value(memory, DType::kFloat, 1, 3);
    logit.fill([] { return 0.5; });
    RowTermsArgs args;
    args.rows = 3;
    args.value = value.data();
    args.term[0].term = term_named("bernoulli_logits.none").index;
    args.term[0].columns = columns;
    args.term[0].in[0].data = x.data();
    args.term[0].in[0].dtype = DType::kBool;
    args.term[0].in[1] = logit.stream();
    implementation.row_terms(args);
    value.download();
    const double want = -static_cast<double>(columns) * std::log1p(std::exp(-0.5));
    for (int r = 0; r < 3; ++r) {
      tally.check(close(value.result(0, r), want, 1e-6 * std::fabs(want)),
                  implementation.name + text(" huge columns: %.9g, not %.9g", value.result(0, r), want));
    }
  }
  {
    const int64_t rows = (int64_t{1} << 31) + 5;
    Tensor mu(memory, DType::kFloat, 1, 1, Layout::kScalar), logvar(memory, DType::kFloat, 1, 1, Layout::kScalar),
        loss(memory, DType::kFloat, 1, 1);
    mu.fill([] { return 1.0; });
    logvar.fill([] { return 0.0; });
    RowTermsArgs args;
    args.rows = rows;
    args.loss = loss.data();
    args.term[0].term = term_named("kl.logvar").index;
    args.term[0].columns = 1;
    args.term[0].param[0] = -HUGE_VAL;
    args.term[0].in[0] = mu.stream();
    args.term[0].in[1] = logvar.stream();
    implementation.row_terms(args);
    loss.download();
    const double want = 0.5 * static_cast<double>(rows);
    tally.check(close(loss.result(0, 0), want, 1e-6 * want),
                implementation.name + text(" huge rows: %.9g, not %.9g", loss.result(0, 0), want));
  }
}

}  // namespace native

// Row sums, gradients and losses of every term against the formulas in double, over data types, sizes and layouts drawn at random.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "implementations.h"
#include "reference.h"

namespace native {

namespace {

using vae_fast::RowTermsArgs;
using vae_fast::TermArgs;

/// A value that input i of a term may well have.
double draw_input(Random& random, const TermName& name, int i) {
  if (name.is_scale(i)) {
    if (name.form < 2) return 0.7 * random.normal();
    if (name.form < 4) return std::exp(0.5 * random.normal());
    // over a narrow scale the rounding of log x is large, in any formula
    return (name.family == "log_normal" ? 0.7 : 2.0) * random.normal();
  }
  if ((name.family == "log_normal" && i == 0) || (name.family == "student_t" && i == 2)) return std::exp(random.normal());
  if (name.is_bernoulli()) {
    if (i == 0) return random.coin(0.4) ? static_cast<double>(random.coin()) : random.uniform();
    if (name.family != "bernoulli_probs") return random.coin(0.1) ? 40.0 * random.normal() : 3.0 * random.normal();
    return random.coin(0.1) ? random.one_of({1e-6, 1.0 - 1e-4, 0.5}) : random.uniform(0.001, 0.999);
  }
  if (name.is_of_counts()) {
    if (i == 0) return random.coin(0.8) ? 0.0 : std::floor(random.one_of({2.0, 8.0, 200.0}) * random.uniform());
    if (i == 3) return 3.0 * random.normal();
    const double log = std::clamp((random.coin(0.1) ? 6.0 : 1.0) * random.normal(), -9.0, 11.0);  // within a half's range
    return name.is_log() ? log : std::exp(log);
  }
  return 1.5 * random.normal();
}

DType draw_dtype(Random& random, bool is_double, bool mixed, DType common) {
  if (is_double) return DType::kDouble;
  return mixed ? random.one_of({DType::kFloat, DType::kHalf, DType::kBFloat16}) : common;
}

/// One term of a call with its tensors.
struct Term {
  TermName name;
  TermArgs args;
  std::vector<std::shared_ptr<Tensor>> in, grad;  // a gradient may lie over its input
  std::unique_ptr<Tensor> row_grad;

  /// Loose enough for the rounding of a derivative in float and of the result in its data type.
  static double grad_tolerance(double want, double g, double d, DType dtype, bool is_double) {
    const double compute = (is_double ? 1e-11 : 1e-5) * std::fabs(g) * (std::fabs(d) + 1.0);
    const double stored = dtype == DType::kHalf ? 1e-3 * std::fabs(want) + 1e-7 : dtype == DType::kBFloat16 ? 8e-3 * std::fabs(want) : 0.0;
    return compute + stored;
  }
};

struct Case {
  std::string label;
  int64_t rows;
  bool is_double, value, loss;
  bool parts = false;  // the sums of each term beside them
  double loss_scale;
  std::vector<Term> terms;
};

std::unique_ptr<Tensor> make(Memory& memory, DType dtype, int64_t rows, int64_t columns, Layout layout) {
  return std::make_unique<Tensor>(memory, dtype, rows, columns, layout);
}

Term draw_term(Random& random, Memory& memory, const TermName& name, int64_t rows, int64_t columns, bool is_double, std::string& label) {
  Term t;
  t.name = name;
  t.args.term = name.index;
  t.args.is_double = is_double;
  t.args.columns = columns;
  t.args.coefficient = random.one_of({1.0, -1.0, 0.25});
  const double eps = random.one_of({1e-9, 1e-3});
  t.args.param[0] = !name.is_kl() ? eps : random.coin(0.3) ? 0.3 : -HUGE_VAL;
  const bool mixed = random.coin(0.25), dense = random.coin();
  const DType common = random.one_of({DType::kFloat, DType::kHalf, DType::kBFloat16, DType::kFloat});
  const bool grads = random.coin(0.7);
  label += text(" term %s columns %ld%s", name.name.c_str(), static_cast<long>(columns), grads ? " grads" : "");
  for (int i = 0; i < t.name.inputs; ++i) {
    DType dtype = draw_dtype(random, is_double, mixed, common);
    if (i == 0 && !t.name.is_kl()) {
      const int kind = static_cast<int>(random.below(4));
      if (kind == 0) dtype = name.is_of_counts() ? DType::kByte : DType::kUInt8;
      if (kind == 1 && name.is_bernoulli()) dtype = DType::kBool;
      if (kind == 2 && !is_double) dtype = DType::kFloat;
    }
    const Layout layout =
        dense ? random.one_of({Layout::kDense, Layout::kDense, Layout::kPadded}) : static_cast<Layout>(random.below(kLayouts));
    label += text(" %d/%d", static_cast<int>(dtype), static_cast<int>(layout));
    t.in.push_back(make(memory, dtype, rows, columns, layout));
    t.in.back()->fill([&] { return draw_input(random, t.name, i); });
    t.args.in[i] = t.in.back()->stream();
    t.grad.push_back(nullptr);
    if (!grads || size_of(dtype) == 1 || random.coin(0.2) || (i == 0 && name.is_of_counts())) continue;
    if (i == 1 && (layout == Layout::kDense || layout == Layout::kPadded || layout == Layout::kTwoBatchDims) && random.coin(0.3)) {
      label += " over";
      t.grad.back() = t.in.back();
      t.args.grad[i] = t.args.in[i];
      continue;
    }
    const Layout of_grad =
        dense ? Layout::kDense
              : random.one_of({Layout::kDense, Layout::kPadded, Layout::kOddPadded, Layout::kShifted, Layout::kTwoBatchDims});
    t.grad.back() = make(memory, dtype, rows, columns, of_grad);
    t.args.grad[i] = t.grad.back()->stream();
  }
  t.args.row_grad.constant = random.one_of({1.0, -0.5, 2.0});
  if (random.coin()) {
    const int64_t stride = random.one_of({0, 1, 2});
    t.row_grad = make(memory, is_double ? DType::kDouble : DType::kFloat, 1, std::max<int64_t>(1, rows * std::max<int64_t>(stride, 1)),
                      Layout::kDense);
    t.row_grad->fill([&] { return random.normal(); });
    t.args.row_grad.data = t.row_grad->data();
    t.args.row_grad.stride = stride;
  }
  return t;
}

void run(Implementation& implementation, Case& c) {
  Memory& memory = *implementation.memory;
  const DType result = c.is_double ? DType::kDouble : DType::kFloat;
  Tensor value(memory, result, 1, c.rows), loss(memory, result, 1, 1);
  Tensor part_value(memory, result, 2, c.rows), part_loss(memory, result, 2, 1);
  RowTermsArgs args;
  args.terms_used = static_cast<int32_t>(c.terms.size());
  args.rows = c.rows;
  args.is_double = c.is_double;
  args.value = c.value ? value.data() : nullptr;
  args.loss = c.loss ? loss.data() : nullptr;
  args.loss_scale = c.loss_scale;
  for (size_t t = 0; t < c.terms.size(); ++t) args.term[t] = c.terms[t].args;
  args.part_scale = std::fabs(c.loss_scale);
  for (int t = 0; c.parts && t < 2; ++t) {
    const size_t size = c.is_double ? sizeof(double) : sizeof(float);
    if (c.value) args.part_value[t] = static_cast<char*>(part_value.data()) + static_cast<size_t>(t * c.rows) * size;
    if (c.loss) args.part_loss[t] = static_cast<char*>(part_loss.data()) + static_cast<size_t>(t) * size;
  }
  implementation.row_terms(args);
  for (Tensor* t : {&value, &loss, &part_value, &part_loss}) t->download();
  for (Term& t : c.terms) {
    for (auto& g : t.grad) {
      if (g != nullptr) g->download();
    }
  }

  const std::string where = implementation.name + " row_terms" + c.label;
  const double unit = c.is_double ? 2e-14 : 2e-6;
  double loss_want = 0.0, loss_magnitude = 0.0, part_want[2] = {}, part_magnitude[2] = {};
  int bad_values = 0, bad_grads = 0;
  std::string first_bad;
  for (int64_t r = 0; r < c.rows; ++r) {
    double want = 0.0, magnitude = 0.0;
    for (size_t which = 0; which < c.terms.size(); ++which) {
      Term& t = c.terms[which];
      double sum = 0.0, size = 0.0;
      double g = t.args.row_grad.constant;
      if (t.row_grad != nullptr) g *= t.row_grad->value(0, r * t.args.row_grad.stride);
      for (int64_t k = 0; k < t.args.columns; ++k) {
        double in[4] = {};
        for (int i = 0; i < t.name.inputs; ++i) in[i] = t.in[static_cast<size_t>(i)]->value(r, k);
        const Element e = evaluate(t.name, in, t.args.param);
        sum += e.value;
        size += e.magnitude;
        for (int i = 0; i < t.name.inputs; ++i) {
          const auto& grad = t.grad[static_cast<size_t>(i)];
          if (grad == nullptr) continue;
          const double got = grad->result(r, k), d = g * e.d[i];
          if (overflows(d, grad->dtype()) && std::isinf(got) && std::signbit(got) == std::signbit(d)) continue;
          if (close(got, d, Term::grad_tolerance(d, g, e.d[i], grad->dtype(), c.is_double))) continue;
          if (++bad_grads == 1)
            first_bad += text(" grad %d at (%ld, %ld): %.9g, not %.9g", i, static_cast<long>(r), static_cast<long>(k), got, d);
        }
      }
      want += t.args.coefficient * sum;
      magnitude += std::fabs(t.args.coefficient) * size;
      part_want[which] += sum;
      part_magnitude[which] += size;
      const double part = part_value.result(static_cast<int64_t>(which), r);
      if (c.parts && c.value && !close(part, sum, unit * size) && ++bad_values == 1)
        first_bad += text(" part %d of value %ld: %.9g, not %.9g", static_cast<int>(which), static_cast<long>(r), part, sum);
    }
    if (c.value && !close(value.result(0, r), want, unit * magnitude)) {
      if (++bad_values == 1) first_bad += text(" value %ld: %.9g, not %.9g", static_cast<long>(r), value.result(0, r), want);
    }
    loss_want += want;
    loss_magnitude += magnitude;
  }
  if (c.value) tally.check(bad_values == 0, where + first_bad);
  tally.check(bad_grads == 0, where + first_bad);
  if (c.loss) {
    const double want = c.loss_scale * loss_want;
    tally.check(close(loss.result(0, 0), want, unit * std::fabs(c.loss_scale) * loss_magnitude),
                where + text(" loss %.9g, not %.9g", loss.result(0, 0), want));
    for (int t = 0; c.parts && t < 2; ++t) {
      const double part = part_loss.result(t, 0), exact = args.part_scale * part_want[t];
      tally.check(close(part, exact, unit * args.part_scale * part_magnitude[t]), where + text(" part %d: %.9g, not %.9g", t, part, exact));
    }
  }
}

Case draw_case(Random& random, Memory& memory, const TermName& term) {
  Case c;
  c.is_double = random.coin(0.2);
  c.rows = random.coin(0.15) ? random.one_of({0, 1, 200, 701}) : random.one_of({1, 2, 3, 7, 12, 33});
  int64_t columns = random.one_of({1, 2, 3, 4, 7, 8, 16, 20, 21, 24, 33, 64, 100, 256, 257, 784, 1030});
  if (random.coin(0.03)) columns = 0;
  if (c.rows * columns > 40000) columns = 20;
  c.value = random.coin(0.7);
  c.loss = random.coin();
  c.loss_scale = random.one_of({1.0, -0.01});
  c.label = text("%s rows %ld%s", c.is_double ? " double" : "", static_cast<long>(c.rows), c.loss ? " loss" : "");
  c.terms.push_back(draw_term(random, memory, term, c.rows, columns, c.is_double, c.label));
  if (!c.terms[0].name.is_kl() && random.coin()) {
    const int64_t latents = random.one_of({1, 2, 5, 20, 32, 130});
    const TermName& kl = kl_of(static_cast<int>(random.below(5)), random.coin());
    c.terms.push_back(draw_term(random, memory, kl, c.rows, latents, c.is_double, c.label));
    c.parts = random.coin();
    if (c.parts) c.label += " parts";
  }
  return c;
}

/// A call of one float term over dense rows.
Case plain_case(Memory& memory, const TermName& name, int64_t rows, int64_t columns, const std::function<double(int)>& draw) {
  Case c;
  c.rows = rows;
  c.is_double = false;
  c.value = c.loss = true;
  c.loss_scale = 1.0;
  c.label = text(" plain term %s rows %ld columns %ld", name.name.c_str(), static_cast<long>(rows), static_cast<long>(columns));
  Term t;
  t.name = name;
  t.args.term = name.index;
  t.args.columns = columns;
  t.args.param[0] = name.is_kl() ? -HUGE_VAL : 1e-9;
  for (int i = 0; i < t.name.inputs; ++i) {
    t.in.push_back(make(memory, DType::kFloat, rows, columns, Layout::kDense));
    t.in.back()->fill([&] { return draw(i); });
    t.args.in[i] = t.in.back()->stream();
    t.grad.push_back(nullptr);
    if (i == 0 && name.is_of_counts()) continue;
    t.grad.back() = make(memory, DType::kFloat, rows, columns, Layout::kDense);
    t.args.grad[i] = t.grad.back()->stream();
  }
  c.terms.push_back(std::move(t));
  return c;
}

/// Runs a plain case with what `args` says beside its rows and its term; brings back its gradients, and its values if those are given.
void launch(Implementation& implementation, Case& c, Tensor* value, RowTermsArgs args = {}) {
  args.rows = c.rows;
  args.value = value == nullptr ? nullptr : value->data();
  args.term[0] = c.terms[0].args;
  implementation.row_terms(args);
  if (value != nullptr) value->download();
  for (auto& g : c.terms[0].grad) {
    if (g != nullptr) g->download();
  }
}

}  // namespace

void check_row_terms(Implementation& implementation, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    for (const TermName& term : terms()) {
      Random random(static_cast<uint64_t>(round) * terms().size() + static_cast<uint64_t>(term.index));
      if (implementation.disturb) implementation.disturb(static_cast<unsigned>(round));
      Case c = draw_case(random, *implementation.memory, term);
      run(implementation, c);
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
  // Extremes: no NaN from what is finite.
  for (const TermName& name : terms()) {
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

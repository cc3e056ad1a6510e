#include "row_terms_cases.h"

#include <algorithm>
#include <cmath>

namespace native {

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
  if (name.is_of_levels()) return i == 0 ? static_cast<double>(random.below(256)) / 255.0 : (i == 2 ? 0.7 : 0.5) * random.normal() - 0.3;
  return 1.5 * random.normal();
}

namespace {

void set_params(TermArgs& args, const TermName& name, double number) {
  args.param[0] = number;
  if (name.is_of_levels()) args.param[0] = 255.0, args.param[1] = 1.0;
}

DType draw_dtype(Random& random, bool is_double, bool mixed, DType common) {
  if (is_double) return DType::kDouble;
  return mixed ? random.one_of({DType::kFloat, DType::kHalf, DType::kBFloat16}) : common;
}

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
  set_params(t.args, name, !name.is_kl() ? eps : random.coin(0.3) ? 0.3 : -HUGE_VAL);
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

}  // namespace

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
      long double exact_sum = 0.0L;  // a thousand equal numbers are all rounded the same way
      double size = 0.0;
      double g = t.args.row_grad.constant;
      if (t.row_grad != nullptr) g *= t.row_grad->value(0, r * t.args.row_grad.stride);
      for (int64_t k = 0; k < t.args.columns; ++k) {
        double in[4] = {};
        for (int i = 0; i < t.name.inputs; ++i) in[i] = t.in[static_cast<size_t>(i)]->value(r, k);
        const vae_fast::Bound& bound = t.args.bound;
        const HeldScale held(bound, in[bound.input]);
        in[bound.input] = held.value;
        Element e = evaluate(t.name, in, t.args.param);
        const bool bounded = bound.mode != vae_fast::BoundMode::kNone;  // a derivative of what is not may be infinite
        const double of_bound = bounded ? size_of(bound) * std::fabs(e.d[bound.input]) : 0.0;
        e.d[bound.input] *= held.slope;
        exact_sum += static_cast<long double>(e.value);
        size += e.magnitude + of_bound;
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
      const double sum = static_cast<double>(exact_sum);
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
  if (c.rows == 701 && term.is_bernoulli()) c.rows = 1201, columns = 784;  // rows enough for less than a warp each
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
  set_params(t.args, name, name.is_kl() ? -HUGE_VAL : 1e-9);
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

void launch(Implementation& implementation, Case& c, Tensor* value, RowTermsArgs args) {
  args.rows = c.rows;
  args.value = value == nullptr ? nullptr : value->data();
  args.term[0] = c.terms[0].args;
  implementation.row_terms(args);
  if (value != nullptr) value->download();
  for (auto& g : c.terms[0].grad) {
    if (g != nullptr) g->download();
  }
}

}  // namespace native

#include "reference.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "../../csrc/term_table.h"

namespace native {

namespace {

const double kPi = std::acos(-1.0);

double softplus(double t) { return std::max(t, 0.0) + std::log1p(std::exp(-std::fabs(t))); }
double sigmoid(double t) { return t >= 0 ? 1 / (1 + std::exp(-t)) : std::exp(t) / (1 + std::exp(t)); }

double log_std_of(int form, double t) {
  switch (form) {
    case 0:
      return 0.5 * t;
    case 1:
      return t;
    case 2:
      return std::log(t);
    case 3:
      return 0.5 * std::log(t);
    default:
      return t < -30 ? t : std::log(softplus(t));
  }
}

double d_log_std_of(int form, double t) {
  switch (form) {
    case 0:
      return 0.5;
    case 1:
      return 1;
    case 2:
      return 1 / t;
    case 3:
      return 0.5 / t;
    default:
      return t < -30 ? 1 : sigmoid(t) / softplus(t);
  }
}

double xlogy(double x, double y) { return x == 0 ? 0 : x * std::log(y); }
double xovery(double x, double y) { return x == 0 ? 0 : x / y; }

Element kl(int form, bool prior, const double (&in)[4], double floor) {
  const double log_s = log_std_of(form, in[1]), log_t = prior ? log_std_of(form, in[3]) : 0.0;
  const double delta = in[0] - (prior ? in[2] : 0.0), t = std::exp(log_t), u = 2 * (log_s - log_t);
  const double r = delta / t, value = 0.5 * (std::expm1(u) - u + r * r);
  Element e = {};
  e.magnitude = std::fabs(value) + 1;
  if (value < floor) {
    e.value = floor;
    return e;
  }
  e.value = value;
  e.d[0] = r / t;
  e.d[1] = std::expm1(u) * d_log_std_of(form, in[1]);
  if (prior) {
    e.d[2] = -r / t;
    e.d[3] = -(std::expm1(u) + r * r) * d_log_std_of(form, in[3]);
  }
  return e;
}

Element bce(double x, double p, double q, double log_p, double log_q) {
  Element e = {};
  log_p = std::max(log_p, -100.0);
  log_q = std::max(log_q, -100.0);
  e.value = x * log_p + (1 - x) * log_q;
  e.d[0] = log_p - log_q;
  e.d[1] = (x * q - (1 - x) * p) / std::max(p * q, 1e-12);  // x - p without cancellation
  return e;
}

Element add(double x, double p, double q, double eps) {
  Element e = {};
  e.value = xlogy(x, p + eps) + xlogy(1 - x, q + eps);
  e.d[0] = std::log(p + eps) - std::log(q + eps);
  e.d[1] = xovery(x, p + eps) - xovery(1 - x, q + eps);
  return e;
}

Element logits(int clip, double x, double a, double eps) {
  const double p = sigmoid(a), q = sigmoid(-a);
  Element e = {};
  if (clip == 2) {
    e = add(x, p, q, eps);
    e.d[1] *= p * q;
  } else if (clip == 3) {
    e = bce(x, p, q, -softplus(-a), -softplus(a));
    e.d[1] *= p * q;
  } else {
    const double bound = std::log1p(-eps) - std::log(eps);
    const double c = clip == 1 ? std::min(std::max(a, -bound), bound) : a;
    e.value = -(x * softplus(-c) + (1 - x) * softplus(c));
    e.d[0] = c;
    e.d[1] = c == a ? x * q - (1 - x) * p : 0;
  }
  e.magnitude = std::fabs(e.value) + 1;
  return e;
}

Element probs(int clip, double x, double p, double eps) {
  const double q = 1 - p;
  Element e = {};
  if (clip == 0) {
    e.value = xlogy(x, p) + (1 - x == 0 ? 0 : (1 - x) * std::log1p(-p));
    e.d[0] = std::log(p) - std::log1p(-p);
    e.d[1] = xovery(x, p) - xovery(1 - x, q);
  } else if (clip == 1) {
    const bool clipped = p < eps || q < eps;
    const double low = std::log(eps), high = std::log1p(-eps);
    const double log_p = p < eps ? low : q < eps ? high : std::log(p), log_q = p < eps ? high : q < eps ? low : std::log1p(-p);
    e.value = x * log_p + (1 - x) * log_q;
    e.d[0] = log_p - log_q;
    e.d[1] = clipped ? 0 : (x - p) / (p * q);
  } else if (clip == 2) {
    e = add(x, p, q, eps);
  } else {
    e = bce(x, p, q, std::log(p), std::log1p(-p));
  }
  e.magnitude = std::fabs(e.value) + 1;
  return e;
}

Element gaussian(int form, bool unit, const double (&in)[4]) {
  const double log_s = unit ? 0 : log_std_of(form, in[2]), s = std::exp(log_s), t = (in[0] - in[1]) / s;
  Element e = {};
  e.value = -log_s - 0.5 * std::log(2 * kPi) - 0.5 * t * t;
  e.magnitude = std::fabs(log_s) + 1 + t * t;
  e.d[0] = -t / s;
  e.d[1] = t / s;
  if (!unit) e.d[2] = (t * t - 1) * d_log_std_of(form, in[2]);
  return e;
}

}  // namespace
namespace {

Element kl_of_inputs(const TermName& t, const double (&in)[4], const double (&param)[vae_fast::kMaxTermParams]) {
  return kl(t.form, t.inputs == 4, in, param[0]);
}
Element logits_of_inputs(const TermName& t, const double (&in)[4], const double (&param)[vae_fast::kMaxTermParams]) {
  return logits(t.clip, in[0], in[1], param[0]);
}
Element probs_of_inputs(const TermName& t, const double (&in)[4], const double (&param)[vae_fast::kMaxTermParams]) {
  return probs(t.clip, in[0], in[1], param[0]);
}
Element gaussian_of_inputs(const TermName& t, const double (&in)[4], const double (&)[vae_fast::kMaxTermParams]) {
  return gaussian(t.form, t.form < 0, in);
}

/// What the struct itself makes of doubles.
template <class Struct>
Element struct_in_double(const double (&in)[4], const double (&param)[vae_fast::kMaxTermParams]) {
  Element e = {};
  Struct::eval(in, vae_fast::generic::math::term_params<Struct, double>(param), e.value, e.d);
  e.magnitude = std::fabs(e.value) + 1;
  return e;
}

int place(const std::string& name, std::initializer_list<const char*> names) {
  const auto at = std::find(names.begin(), names.end(), name);
  return at == names.end() ? -1 : static_cast<int>(at - names.begin());
}

template <class Struct>
TermName row(int index, const std::string& name, vae_fast::TermKind kind) {
  const size_t dot = name.find('.');
  const std::string family = name.substr(0, dot), variant = dot == std::string::npos ? "" : name.substr(dot + 1);
  TermName t{index, name, family, kind, Struct::kInputs, Struct::kParams};
  t.form = place(variant, {"logvar", "log_std", "std", "var", "softplus"});
  t.clip = place(variant, {"none", "clamp", "add", "bce"});
  t.in_double = &struct_in_double<Struct>;
  if (family == "kl" || family == "kl_prior") t.formula = &kl_of_inputs;
  if (family == "bernoulli_logits") t.formula = &logits_of_inputs;
  if (family == "bernoulli_probs") t.formula = &probs_of_inputs;
  if (family == "gaussian" || family == "gaussian_unit") t.formula = &gaussian_of_inputs;
  return t;
}

}  // namespace

const std::vector<TermName>& terms() {
  static const std::vector<TermName> all = [] {
    using namespace vae_fast::generic::math;
    using vae_fast::TermKind;
    std::vector<TermName> rows;
#define VF_ROW(name, kind, ...) rows.push_back(row<__VA_ARGS__>(static_cast<int>(rows.size()), name, kind));
    VF_FOR_EACH_TERM(VF_ROW)
#undef VF_ROW
    return rows;
  }();
  return all;
}

const TermName& term_named(const std::string& name) {
  for (const TermName& t : terms()) {
    if (t.name == name) return t;
  }
  std::fprintf(stderr, "no term is called %s\n", name.c_str());
  std::exit(3);
}

const TermName& kl_of(int form, bool prior) {
  static const char* const forms[] = {"logvar", "log_std", "std", "var", "softplus"};
  return term_named((prior ? "kl_prior." : "kl.") + std::string(forms[form]));
}

Element evaluate(const TermName& t, const double (&in)[4], const double (&param)[vae_fast::kMaxTermParams]) {
  return t.formula != nullptr ? t.formula(t, in, param) : t.in_double(in, param);
}

HeldScale::HeldScale(const vae_fast::Bound& bound, double t) : value(t) {
  using vae_fast::BoundMode;
  const double low = bound.low, high = bound.high, half = 0.5 * (high - low), u = (t - 0.5 * (low + high)) / half;
  switch (bound.mode) {
    case BoundMode::kNone:
      return;
    case BoundMode::kClamp:
      value = std::min(std::max(t, low), high), slope = t >= low && t <= high ? 1.0 : 0.0;
      return;
    case BoundMode::kStraightThrough:
      value = std::min(std::max(t, low), high);
      return;
    case BoundMode::kSoftClip: {
      const double above = high - softplus(high - t);
      value = low + softplus(above - low), slope = sigmoid(high - t) * sigmoid(above - low);
      return;
    }
    case BoundMode::kTanh:
      value = low + 2.0 * half * sigmoid(2.0 * u), slope = 4.0 * sigmoid(2.0 * u) * sigmoid(-2.0 * u);
  }
}

double size_of(const vae_fast::Bound& bound) {
  return bound.mode == vae_fast::BoundMode::kNone ? 0.0 : std::max(std::fabs(bound.low), std::fabs(bound.high));
}

vae_fast::Bound draw_bound(Random& random, const TermName& name) {
  vae_fast::Bound bound;
  bound.mode = static_cast<vae_fast::BoundMode>(1 + random.below(4));
  while (!name.is_scale(bound.input)) ++bound.input;  // the posterior's of a KL
  const bool positive = name.form == 2 || name.form == 3;
  bound.low = positive ? 0.25 : random.one_of({-1.5, 0.5, -7.0});
  bound.high = positive ? 4.0 : random.one_of({1.25, 2.0});
  return bound;
}

double std_of(int form, double t) {
  return form == 2 ? t : form == 3 ? std::sqrt(t) : form == 4 ? softplus(t) : std::exp(log_std_of(form, t));
}
double d_std_of(int form, double t) { return std_of(form, t) * d_log_std_of(form, t); }

void philox_rounds(const uint32_t (&counter)[4], const uint32_t (&key)[2], uint32_t (&words)[4]) {
  constexpr uint64_t kWord = uint64_t{1} << 32;
  uint64_t c[4] = {counter[0], counter[1], counter[2], counter[3]}, k[2] = {key[0], key[1]};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
    const uint64_t next[4] = {b / kWord ^ c[1] ^ k[0], b % kWord, a / kWord ^ c[3] ^ k[1], a % kWord};
    std::copy(next, next + 4, c);
    k[0] = (k[0] + 0x9E3779B9ull) % kWord;
    k[1] = (k[1] + 0xBB67AE85ull) % kWord;
  }
  for (int i = 0; i < 4; ++i) words[i] = static_cast<uint32_t>(c[i]);
}

void philox_words(uint64_t seed, uint64_t offset, uint64_t block, uint32_t (&words)[4]) {
  const uint64_t low = offset / 4;
  philox_rounds(
      {static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32), static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32)},
      {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}, words);
}

double normal_of(uint64_t seed, uint64_t offset, uint64_t i) {
  uint32_t w[4];
  philox_words(seed, offset, i / 4, w);
  const uint32_t* pair = w + i % 4 / 2 * 2;
  // rounded to float on the way, as documented
  const double u = static_cast<double>((static_cast<float>(pair[0] >> 1) + 0.5f) * static_cast<float>(std::ldexp(1.0, -31)));
  const double radius = std::sqrt(-2 * std::log(u)), angle = 2 * kPi * std::ldexp(static_cast<double>(pair[1] >> 1), -31);
  return radius * (i % 2 == 0 ? std::cos(angle) : std::sin(angle));
}

}  // namespace native

// The formulas of vae_fast/reference.py in double, one element at a time, written without csrc/math.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "arrays.h"

namespace native {

struct Element {
  double value;
  double d[4];
  double magnitude;  // what the value's rounding error is relative to
};

/// A row of csrc/term_table.h: names, kinds and counts are taken from there.
struct TermName {
  int index = 0;
  std::string name, family;
  vae_fast::TermKind kind = vae_fast::TermKind::kLikelihood;
  int inputs = 0, params = 0;
  int form = -1;  // of a scale, if the name says one: logvar, log_std, std, var, softplus
  int clip = -1;  // none, clamp, add, bce
  /// The formula here; null for a family that has none, which is held against the struct's own arithmetic in double.
  Element (*formula)(const TermName&, const double (&in)[4], const double (&param)[vae_fast::kMaxTermParams]) = nullptr;
  Element (*in_double)(const double (&in)[4], const double (&param)[vae_fast::kMaxTermParams]) = nullptr;

  bool is_kl() const { return kind == vae_fast::TermKind::kKl; }
  bool is_of_counts() const { return kind == vae_fast::TermKind::kCounts; }
  bool is_of_levels() const { return family == "discretized_logistic"; }
  /// Whether the parameters of a count are logarithms.
  bool is_log() const { return name.find("log") != std::string::npos; }
  bool is_bernoulli() const { return family == "bernoulli_logits" || family == "bernoulli_probs" || family == "continuous_bernoulli"; }
  /// Whether input i is a scale.
  bool is_scale(int i) const { return form >= 0 && (is_kl() ? i % 2 == 1 : i == inputs - 1); }
};
const std::vector<TermName>& terms();
/// By name; ends the tests if there is none.
const TermName& term_named(const std::string& name);
/// The KL in a scale form, against N(0, 1) or another Gaussian.
const TermName& kl_of(int form, bool prior);

Element evaluate(const TermName& name, const double (&in)[4], const double (&param)[vae_fast::kMaxTermParams]);

/// A scale held between bounds, and the derivative.
struct HeldScale {
  double value, slope = 1.0;
  HeldScale(const vae_fast::Bound& bound, double t);
};
/// How far apart what is held may be for its rounding, in units of that: the bounds' size.
double size_of(const vae_fast::Bound& bound);
/// Bounds of a term's scale, of which a KL has two: the posterior's.
vae_fast::Bound draw_bound(Random& random, const TermName& name);

double std_of(int form, double t);
double d_std_of(int form, double t);

/// Philox4x32-10 of a whole counter.
void philox_rounds(const uint32_t (&counter)[4], const uint32_t (&key)[2], uint32_t (&words)[4]);
/// ... of the counter (offset / 4, block), 64 bits each.
void philox_words(uint64_t seed, uint64_t offset, uint64_t block, uint32_t (&words)[4]);
/// The normal of element i.
double normal_of(uint64_t seed, uint64_t offset, uint64_t i);

}  // namespace native

// The formulas of vae_fast/reference.py in double, one element at a time, written without csrc/math.
#pragma once

#include <cstdint>
#include <vector>

namespace native {

/// The terms in the order of the table in csrc/terms.h.
enum class Family { kKl, kKlPrior, kLogits, kProbs, kGaussianUnit, kGaussian };
struct TermName {
  Family family;
  int variant;  // scale form (logvar, log_std, std, var, softplus) or clip mode (none, clamp, add, bce)
  int inputs;
  bool is_kl() const { return family == Family::kKl || family == Family::kKlPrior; }
};
constexpr int kTermNames = 24;
TermName term_name(int term);

struct Element {
  double value;
  double d[4];
  double magnitude;  // what the value's rounding error is relative to
};
Element evaluate(const TermName& name, const double (&in)[4], double eps, double floor);

double std_of(int form, double t);
double d_std_of(int form, double t);

/// Philox4x32-10 of a whole counter.
void philox_rounds(const uint32_t (&counter)[4], const uint32_t (&key)[2], uint32_t (&words)[4]);
/// ... of the counter (offset / 4, block), 64 bits each.
void philox_words(uint64_t seed, uint64_t offset, uint64_t block, uint32_t (&words)[4]);
/// The normal of element i.
double normal_of(uint64_t seed, uint64_t offset, uint64_t i);

}  // namespace native

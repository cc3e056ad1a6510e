// Calls of row-summed terms over inputs drawn at random, run and compared with the formulas in double.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "implementations.h"
#include "reference.h"

namespace native {

using vae_fast::RowTermsArgs;
using vae_fast::TermArgs;

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

/// A value that input i of a term may well have.
double draw_input(Random& random, const TermName& name, int i);

/// A call of one term, or of a likelihood and a KL: data types, sizes, layouts and gradients as `random` has them.
Case draw_case(Random& random, Memory& memory, const TermName& term);
/// A call of one float term over dense rows.
Case plain_case(Memory& memory, const TermName& name, int64_t rows, int64_t columns, const std::function<double(int)>& draw);

/// Runs a case, and checks all that it computes.
void run(Implementation& implementation, Case& c);
/// Runs a plain case with what `args` says beside its rows and its term; brings back its gradients, and its values if those are given.
void launch(Implementation& implementation, Case& c, Tensor* value, RowTermsArgs args = {});

}  // namespace native

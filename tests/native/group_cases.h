// Random rows of cells, for the checks of terms over groups of parameters and of softmaxes.
#pragma once

#include <cmath>
#include <memory>

#include "arrays.h"

namespace native {

/// Rows of what a kernel gets and gives: where cell c of a row has entry j of `entries`.
struct Cells {
  int64_t outer, inner;
  int64_t count() const { return outer * inner; }
  int64_t at(int64_t c, int64_t entries, int64_t j) const { return (c / inner * entries + j) * inner + c % inner; }
};

inline Cells draw_cells(Random& random) {
  return random.coin() ? Cells{random.one_of<int64_t>({1, 2, 65, 150}), 1}
                       : Cells{random.one_of<int64_t>({1, 3}), random.one_of<int64_t>({2, 17, 80, 300})};
}

inline DType draw_dtype(Random& random, bool is_double) {
  if (is_double) return DType::kDouble;
  return random.one_of({DType::kFloat, DType::kFloat, DType::kHalf, DType::kBFloat16});
}

inline Layout draw_layout(Random& random) {
  return random.one_of({Layout::kDense, Layout::kDense, Layout::kPadded, Layout::kOddPadded, Layout::kShifted, Layout::kSharedRow,
                        Layout::kTwoBatchDims, Layout::kBroadcastDim});
}

/// What storing in a data type may add to an error.
inline double storing(DType dtype, double v) {
  return dtype == DType::kHalf ? 6e-4 * std::fabs(v) + 1e-7 : dtype == DType::kBFloat16 ? 4e-3 * std::fabs(v) : 0.0;
}

/// An upstream gradient: one for all rows, or one each.
struct Upstream {
  double constant = 1.0;
  std::unique_ptr<Tensor> rows;

  Upstream(Random& random, Memory& memory, int64_t count, bool is_double) {
    if (random.coin(0.3)) constant = -0.75;
    if (random.coin(0.4)) return;
    rows = std::make_unique<Tensor>(memory, is_double ? DType::kDouble : DType::kFloat, 1, count);
    rows->fill([&] { return random.coin(0.2) ? 0.0 : random.normal(); });
  }
  void set(vae_fast::RowGrad& g) const {
    g.constant = constant;
    if (rows) g.data = rows->data(), g.stride = 1;
  }
  double of(int64_t row) const { return constant * (rows ? rows->value(0, row) : 1.0); }
};

}  // namespace native

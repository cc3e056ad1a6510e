// Sums whose order the shape alone decides.
#pragma once

#include "tile.h"

namespace vae_fast {
namespace VF_ISA {

/// acc[i] += the sum over rows of weight[row] a[row, i], for dense rows of `inner` values; without weights they are 1.
template <typename T>
void add_rows(const void* from, const void* weights, int64_t rows, int64_t inner, double* acc) {
  const T *a = static_cast<const T*>(from), *weight = static_cast<const T*>(weights);
  if (inner == 1 && weight == nullptr) {
    for (int64_t i = 0; i < rows; i += kTile) *acc += sum_in_double(a + i, static_cast<int>(rows - i < kTile ? rows - i : kTile));
    return;
  }
  for (int64_t i = 0; i < inner; i += kTile) {
    const int n = static_cast<int>(inner - i < kTile ? inner - i : kTile);
    double* __restrict to = acc + i;
    for (int64_t r = 0; r < rows; ++r) {
      const T* __restrict row = a + r * inner + i;
      const double w = weight == nullptr ? 1.0 : static_cast<double>(weight[r]);
      if (w == 0.0) continue;
      VF_SIMD
      for (int j = 0; j < n; ++j) to[j] += w * static_cast<double>(row[j]);
    }
  }
}

}  // namespace VF_ISA
}  // namespace vae_fast

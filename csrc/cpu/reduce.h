// Sums whose order the shape alone decides.
#pragma once

#include "tile.h"

namespace vae_fast {
namespace VF_ISA {

/// acc[i] += the sum over rows of a[row, i], for dense rows of `inner` values.
template <typename T>
void add_rows(const void* from, int64_t rows, int64_t inner, double* acc) {
  const T* a = static_cast<const T*>(from);
  if (inner == 1) {
    for (int64_t i = 0; i < rows; i += kTile) *acc += sum_in_double(a + i, static_cast<int>(rows - i < kTile ? rows - i : kTile));
    return;
  }
  for (int64_t i = 0; i < inner; i += kTile) {
    const int n = static_cast<int>(inner - i < kTile ? inner - i : kTile);
    double* __restrict to = acc + i;
    for (int64_t r = 0; r < rows; ++r) {
      const T* __restrict row = a + r * inner + i;
      VF_SIMD
      for (int j = 0; j < n; ++j) to[j] += static_cast<double>(row[j]);
    }
  }
}

}  // namespace VF_ISA
}  // namespace vae_fast

// Work cut by shape alone: no result depends on how many threads there are.
#pragma once

#include <cstdint>

#if defined(VF_NO_TORCH)  // the native tests, which link no torch
#include "serial.h"
#else
#include <ATen/Parallel.h>
#endif

namespace vae_fast {
namespace cpu {

constexpr int64_t kBlockElements = 8192;    // one unit of work: about a microsecond and 64 KB of data
constexpr int64_t kThreadElements = 16384;  // less than this is not worth waking a thread for

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Calls f(begin, end) over [0, blocks), each of about `elements` elements.
template <class F>
void for_blocks(int64_t blocks, int64_t elements, const F& f) {
  if (blocks <= 0) return;
  const int64_t grain = ceil_div(kThreadElements, elements > 0 ? elements : 1);
  if (blocks <= grain) return f(int64_t{0}, blocks);
  at::parallel_for(0, blocks, grain, f);
}

/// Calls f(r0, r1) over blocks of rows of `columns` elements.
template <class F>
void for_rows(int64_t rows, int64_t columns, const F& f) {
  const int64_t step = columns >= kBlockElements ? 1 : kBlockElements / (columns > 0 ? columns : 1);
  for_blocks(ceil_div(rows, step), step * columns, [&](int64_t begin, int64_t end) {
    const int64_t r1 = end * step < rows ? end * step : rows;
    f(begin * step, r1);
  });
}

}  // namespace cpu
}  // namespace vae_fast

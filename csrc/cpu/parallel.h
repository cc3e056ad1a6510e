// Work cut by shape alone: no result depends on how many threads there are.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

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

constexpr int64_t kLongRow = 65536;  // longer rows are split among threads too

/// How a batch of rows is cut: in blocks of `step` rows, of which a thread takes `together`, where they share what they sum.
struct RowBlocks {
  static constexpr int64_t kMaxStep = 512, kSums = 64;
  int64_t step, blocks, together;

  RowBlocks(int64_t rows, int64_t columns) {
    step = columns > 0 ? kBlockElements / columns : kMaxStep;
    step = step < 1 ? 1 : step > kMaxStep ? kMaxStep : step;
    blocks = ceil_div(rows, step);
    together = ceil_div(blocks, kSums);
  }
  int64_t rows_of_sum() const { return step * together; }
};

/// Memory for vectors.
struct Aligned {
  explicit Aligned(int64_t bytes)
      : data(std::aligned_alloc(64, static_cast<size_t>(ceil_div(bytes > 0 ? bytes : 1, 64) * 64)), &std::free) {
    if (data == nullptr) throw std::bad_alloc();
  }
  std::unique_ptr<void, decltype(&std::free)> data;
};

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

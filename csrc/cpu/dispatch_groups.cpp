// Terms over groups of parameters: a row's cells in pieces that the shape alone decides, whose sums are added in order.
#include <vector>

#include "parallel.h"
#include "table.h"

namespace vae_fast {
namespace cpu {
namespace {

/// value[row] = the sum over its cells of f(row, c0, c1, scratch), which gives that of a piece. `elements` are those of a cell.
template <class F>
void sum_cells(int64_t rows, int64_t cells, int64_t elements, bool is_double, int64_t scratch_bytes, void* value, const F& f) {
  constexpr int64_t kPiece = 64;  // a multiple of every tile's cells
  const int64_t step = ceil_div(ceil_div(kBlockElements, elements > 0 ? elements : 1), kPiece) * kPiece;
  const int64_t pieces = ceil_div(cells, step);
  std::vector<double> partial(static_cast<size_t>(rows * pieces), 0.0);
  for_blocks(rows * pieces, (cells < step ? cells : step) * elements, [&](int64_t begin, int64_t end) {
    const Aligned scratch(scratch_bytes);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t row = b / pieces, c0 = b % pieces * step, c1 = c0 + step < cells ? c0 + step : cells;
      partial[static_cast<size_t>(b)] = f(row, c0, c1, scratch.data.get());
    }
  });
  for (int64_t row = 0; value != nullptr && row < rows; ++row) {
    double total = 0.0;
    for (int64_t p = 0; p < pieces; ++p) total += partial[static_cast<size_t>(row * pieces + p)];
    if (is_double) {
      static_cast<double*>(value)[row] = total;
    } else {
      static_cast<float*>(value)[row] = static_cast<float>(total);
    }
  }
}

}  // namespace

void group_terms(const GroupArgs& a) {
  const auto cells = table().group_cells[a.is_double];
  constexpr int64_t kWork = 64;  // a component costs as much as so many simple elements
  sum_cells(a.rows, a.outer * a.inner, a.components * kWork, a.is_double, table().group_scratch_bytes[a.is_double](a), a.value,
            [&](int64_t row, int64_t c0, int64_t c1, void* scratch) { return cells(a, row, c0, c1, scratch); });
}

void softmax_terms(const SoftmaxArgs& a) {
  const auto cells = table().softmax_cells[a.is_double];
  sum_cells(a.rows, a.outer * a.inner, a.k, a.is_double, 0, a.value,
            [&](int64_t row, int64_t c0, int64_t c1, void*) { return cells(a, row, c0, c1); });
}

}  // namespace cpu
}  // namespace vae_fast

#include "csr.h"

#include "../cpu/parallel.h"
#include "layout.h"

#include <atomic>

namespace vae_fast {
namespace ops {
namespace {

/// Whether the columns of rows [r0, r1) ascend within each row, from 0 to below `columns`.
template <typename I>
bool columns_ascend(const I* offset, const I* column, int64_t r0, int64_t r1, int64_t columns) {
  bool good = true;
  for (int64_t r = r0; r < r1; ++r) {
    const I *begin = column + offset[r], *end = column + offset[r + 1];
    if (begin == end) continue;
    good &= *begin >= 0 && end[-1] < columns;
    for (const I* at = begin + 1; at < end; ++at) good &= at[-1] < *at;
  }
  return good;
}

template <typename I>
void check_places(const SparseRows& x, int64_t rows, int64_t columns, int64_t entries) {
  const I *offset = static_cast<const I*>(x.offsets), *column = static_cast<const I*>(x.columns);
  TORCH_CHECK_VALUE(offset[0] == 0 && offset[rows] == entries, "x: its row pointers go from ", offset[0], " to ", offset[rows],
                    ": expected from 0 to ", entries, ", the number of its values");
  for (int64_t r = 0; r < rows; ++r) {
    TORCH_CHECK_VALUE(offset[r] <= offset[r + 1] && offset[r + 1] <= entries, "x: row ", r,
                      " ends before it begins: expected row pointers in ascending order");
  }
  std::atomic<bool> good{true};
  cpu::for_rows(rows, rows > 0 ? entries / rows : 0, [&](int64_t r0, int64_t r1) {
    if (!columns_ascend(offset, column, r0, r1, columns)) good = false;
  });
  for (int64_t r = 0; !good && r < rows; ++r) {  // which it is
    int64_t least = 0;
    for (int64_t i = offset[r]; i < offset[r + 1]; least = column[i] + 1, ++i) {
      TORCH_CHECK_VALUE(column[i] >= least && column[i] < columns, "x: row ", r, " has column ", column[i],
                        ": expected columns in ascending order, from 0 to ", columns - 1);
    }
  }
}

}  // namespace

SparseRows sparse_rows(const Tensor& values, const Tensor& row_begin, const Tensor& column, int64_t rows, int64_t columns,
                       std::vector<Tensor>& keep) {
  const int64_t entries = values.numel();
  TORCH_CHECK_VALUE(row_begin.numel() == rows + 1 && column.numel() == entries, "x: ", row_begin.numel(), " row pointers and ",
                    column.numel(), " columns: expected ", rows + 1, " and ", entries);
  TORCH_CHECK_TYPE(
      row_begin.scalar_type() == column.scalar_type() && (column.scalar_type() == at::kLong || column.scalar_type() == at::kInt),
      "x: row pointers of ", row_begin.scalar_type(), ", columns of ", column.scalar_type(), ": expected int32 or int64, both the same");
  const auto held = [&](const Tensor& t) {
    keep.push_back(t.contiguous());
    return keep.back().const_data_ptr();
  };
  SparseRows x;
  x.offsets = held(row_begin);
  x.columns = held(column);
  x.values = held(values);
  x.wide = column.scalar_type() == at::kLong;
  x.dtype = count_dtype_of(values);
  x.entries = entries;
  if (values.is_cpu()) x.wide ? check_places<int64_t>(x, rows, columns, entries) : check_places<int32_t>(x, rows, columns, entries);
  return x;
}

}  // namespace ops
}  // namespace vae_fast

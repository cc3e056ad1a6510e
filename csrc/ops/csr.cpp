#include "csr.h"

#include "layout.h"

namespace vae_fast {
namespace ops {

void set_csr(SoftmaxArgs& args, const at::Tensor& count, const at::Tensor& row_begin, const at::Tensor& column,
             std::vector<at::Tensor>& keep) {
  const auto held = [&](const at::Tensor& t, at::ScalarType type) {
    keep.push_back(t.to(type).contiguous());
    return keep.back();
  };
  const int64_t entries = count.numel();
  TORCH_CHECK_VALUE(row_begin.numel() == args.rows + 1 && column.numel() == entries, "x: ", row_begin.numel(), " row pointers and ",
                    column.numel(), " columns: expected ", args.rows + 1, " and ", entries);
  args.target = Target::kSparse;
  args.count = held(count, compute_type(args.is_double)).const_data_ptr();
  args.row_begin = held(row_begin, at::kLong).const_data_ptr<int64_t>();
  args.column = held(column, at::kLong).const_data_ptr<int64_t>();
  if (!count.is_cpu()) return;
  TORCH_CHECK_VALUE(args.row_begin[0] == 0 && args.row_begin[args.rows] == entries, "x: its row pointers go from ", args.row_begin[0],
                    " to ", args.row_begin[args.rows], ": expected from 0 to ", entries, ", the number of its values");
  for (int64_t r = 0; r < args.rows; ++r) {
    TORCH_CHECK_VALUE(args.row_begin[r] <= args.row_begin[r + 1] && args.row_begin[r + 1] <= entries, "x: row ", r,
                      " ends before it begins: expected row pointers in ascending order");
    int64_t least = 0;
    for (int64_t i = args.row_begin[r]; i < args.row_begin[r + 1]; least = args.column[i] + 1, ++i) {
      TORCH_CHECK_VALUE(args.column[i] >= least && args.column[i] < args.k, "x: row ", r, " has column ", args.column[i],
                        ": expected columns in ascending order, from 0 to ", args.k - 1);
    }
  }
}

}  // namespace ops
}  // namespace vae_fast

// The parts of a CSR matrix as the kernels read them.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "../sparse_rows.h"

namespace vae_fast {
namespace ops {

/// A CSR matrix of rows x columns by its values, where each row begins among them, and their columns; copies are kept. On the CPU the
/// places are looked at: a column out of range would be read from, and written to, somebody else's memory.
SparseRows sparse_rows(const at::Tensor& values, const at::Tensor& row_begin, const at::Tensor& column, int64_t rows, int64_t columns,
                       std::vector<at::Tensor>& keep);

}  // namespace ops
}  // namespace vae_fast

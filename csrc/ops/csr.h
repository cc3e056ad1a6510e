// The parts of a CSR matrix as the kernels read them.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "../kernels.h"

namespace vae_fast {
namespace ops {

/// Points `args` at the counts of a CSR matrix of args.rows x args.k, in the compute type, its row pointers and its columns; copies are
/// kept. On the CPU they are looked at: a column out of range would be read from, and written to, somebody else's memory.
void set_csr(SoftmaxArgs& args, const at::Tensor& count, const at::Tensor& row_begin, const at::Tensor& column,
             std::vector<at::Tensor>& keep);

}  // namespace ops
}  // namespace vae_fast

// What the groups' own files (groups_*.cpp) offer to the table of an instruction set's kernels.
#pragma once

#include "../kernels.h"
#include "../math/portable.h"

namespace vae_fast {
namespace VF_ISA {

template <typename T>
int64_t group_scratch_bytes(const GroupArgs& a);

/// The sum of the values of cells [c0, c1) of a row; writes their gradients.
template <typename T>
double group_cells(const GroupArgs& a, int64_t row, int64_t c0, int64_t c1, void* scratch);

template <typename T>
double softmax_cells(const SoftmaxArgs& a, int64_t row, int64_t c0, int64_t c1);

}  // namespace VF_ISA
}  // namespace vae_fast

// What the terms' own files (terms_*.cpp) offer to the table of an instruction set's kernels.
#pragma once

#include "../math/portable.h"
#include "../term_args.h"

namespace vae_fast {
namespace VF_ISA {

/// Adds the sum over columns [c0, c1) of rows [r0, r1) to acc[r - r0], if acc is not null, and writes the gradients of those
/// elements.
template <typename T>
void term_rows(const TermArgs& a, int64_t r0, int64_t r1, int64_t c0, int64_t c1, double* acc);

/// Rows of one column: writes coefficient * f of elements [r0, r1) to values, if that is not null, and their gradients.
template <typename T>
void term_elements(const TermArgs& a, void* values, int64_t r0, int64_t r1);

}  // namespace VF_ISA
}  // namespace vae_fast

// What one instruction set offers: the same kernels compiled for it. dispatch.cpp picks a table once, at the first call.
#pragma once

#include "../kernels.h"

namespace vae_fast {
namespace cpu {

/// Index 0 computes in float, 1 in double. Ranges are [begin, end).
struct KernelTable {
  const char* isa;
  void (*term_rows[2])(const TermArgs&, int64_t r0, int64_t r1, int64_t c0, int64_t c1, double* acc);
  void (*sample_rows[2])(const SampleArgs&, uint64_t seed, uint64_t offset, int64_t r0, int64_t r1, double* acc);
  void (*sample_backward_rows[2])(const SampleBackwardArgs&, uint64_t seed, uint64_t offset, int64_t r0, int64_t r1);
  void (*logsumexp[2])(const LogSumExpArgs&, int64_t o0, int64_t o1, int64_t i0, int64_t i1);
  void (*logsumexp_backward[2])(const LogSumExpBackwardArgs&, int64_t o0, int64_t o1, int64_t i0, int64_t i1);
  void (*scale)(void* data, DType dtype, int64_t begin, int64_t end, double by);
};

const KernelTable& table_baseline();
#if defined(__x86_64__)
const KernelTable& table_avx2();
const KernelTable& table_avx512();
#endif

/// The table in use: the best this processor runs, or the one VAE_FAST_ISA names (baseline, avx2, avx512).
const KernelTable& table();
/// The instruction sets that were built and that this processor runs, best first, ended by null.
const char* const* isa_available();

}  // namespace cpu
}  // namespace vae_fast

// What one instruction set offers: the same kernels compiled for it. dispatch.cpp picks a table once, at the first call.
#pragma once

#include "../kernels.h"

namespace vae_fast {
namespace cpu {

/// How a mixture is cut: rows of a chunk, dimensions rounded up to whole vectors, from one component to the next, components of one sweep,
/// scratch memory of a thread.
struct MixturePlan {
  int rows = 0, padded_dims = 0, stride = 0, components = 0;
  int64_t scratch_bytes = 0;
};

/// A mixture's parameters as the loops read them: means, and reciprocal standard deviations, `stride` apart and filled up with zeros.
struct MixtureParameters {
  const void* means = nullptr;
  const void* scale = nullptr;                                            // full: the factors as they are
  double farthest_mean = 0.0, largest_scale = 0.0, smallest_scale = 0.0;  // the last of diagonal ones
};

/// Where a piece's sums over rows go: rows `stride` apart, added to.
struct MixtureSums {
  double* counts = nullptr;  // null: no sums are wanted
  double* first = nullptr;
  double* second = nullptr;
  int64_t second_stride = 0;  // full: from one component to the next
};

/// Index 0 computes in float, 1 in double. Ranges are [begin, end).
struct KernelTable {
  const char* isa;
  void (*term_rows[2])(const TermArgs&, int64_t r0, int64_t r1, int64_t c0, int64_t c1, double* acc);
  void (*term_elements[2])(const TermArgs&, void* values, int64_t r0, int64_t r1);
  void (*sample_rows[2])(const SampleArgs&, uint64_t seed, uint64_t offset, int64_t r0, int64_t r1, double* acc);
  void (*sample_backward_rows[2])(const SampleBackwardArgs&, uint64_t seed, uint64_t offset, int64_t r0, int64_t r1);
  void (*logsumexp[2])(const LogSumExpArgs&, int64_t o0, int64_t o1, int64_t i0, int64_t i1);
  void (*logsumexp_backward[2])(const LogSumExpBackwardArgs&, int64_t o0, int64_t o1, int64_t i0, int64_t i1);
  MixturePlan (*mixture_plan[2])(const MixtureArgs&);
  void (*mixture_rows[2])(const MixtureForwardArgs&, const MixturePlan&, const MixtureParameters&, int64_t r0, int64_t r1, void* scratch);
  void (*mixture_backward_rows[2])(const MixtureBackwardArgs&, const MixturePlan&, const MixtureParameters&, int64_t r0, int64_t r1,
                                   const MixtureSums&, void* scratch);
  int64_t (*mdn_scratch_bytes[2])(const MdnArgs&);
  void (*mdn_rows[2])(const MdnArgs&, int64_t r0, int64_t r1, void* scratch);
  void (*mdn_backward_rows[2])(const MdnBackwardArgs&, int64_t r0, int64_t r1, void* scratch);
  int64_t (*group_scratch_bytes[2])(const GroupArgs&);
  double (*group_cells[2])(const GroupArgs&, int64_t row, int64_t c0, int64_t c1, void* scratch);
  double (*softmax_cells[2])(const SoftmaxArgs&, int64_t row, int64_t c0, int64_t c1);
  void (*add_rows[2])(const void* from, int64_t rows, int64_t inner, double* acc);
  double (*fma_probe)(int64_t iterations, float* sink);
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
/// From here on the table of this one: the native tests run every instruction set in one process. Not while a kernel runs.
void use_isa(const char* name);

}  // namespace cpu
}  // namespace vae_fast

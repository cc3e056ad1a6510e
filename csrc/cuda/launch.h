// How kernels are written and started. Under nvcc this is CUDA; otherwise the test-only host shim (tests/native/shim), which runs the very
// same kernel source on the CPU.
#pragma once

#include <cstdint>

#include "../kernels.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define VF_START(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)
#else
#include "cuda_shim.h"
#define VF_START(kernel, grid, block, stream, ...) vf_shim::launch(grid, block, [=] { kernel(__VA_ARGS__); })
#endif

#define VF_DEVICE __device__ __forceinline__

namespace vae_fast {
namespace cuda {

constexpr int kWarp = 32;
constexpr int kThreads = 256;  // per block, in every kernel
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kFullMask = 0xffffffffu;

/// Blocks that keep a device busy for many waves, so that the last, partly filled wave costs little; kernels loop beyond that.
constexpr int kBlocksPerProcessor = 64;

/// Multiprocessors of the current device.
int processors();

/// What set_tuning was last given.
const Tuning& tuning();

/// Blocks for `units` units of work: one each, up to the cap.
inline unsigned capped_grid(int64_t units) {
  const int32_t per_processor = tuning().blocks_per_processor > 0 ? tuning().blocks_per_processor : kBlocksPerProcessor;
  const int64_t cap = static_cast<int64_t>(processors()) * per_processor;
  return static_cast<unsigned>(units < cap ? units : cap);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace cuda
}  // namespace vae_fast

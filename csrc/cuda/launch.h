// How kernels are written and started. Under nvcc this is CUDA; otherwise the test-only host shim (tests/native/shim), which runs the very
// same kernel source on the CPU.
#pragma once

#include <cstdint>

#include "../kernels.h"

#if defined(__CUDACC__)
#include <cuda_pipeline_primitives.h>
#include <cuda_runtime.h>
#define VF_START_SHARED(kernel, grid, block, bytes, stream, ...) kernel<<<grid, block, bytes, stream>>>(__VA_ARGS__)
/// Shared memory of so many bytes as the kernel is started with, VF_START_SHARED.
#define VF_SHARED_BYTES(name) extern __shared__ __align__(16) unsigned char name[]
#else
#include "cuda_shim.h"
#define VF_START_SHARED(kernel, grid, block, bytes, stream, ...) vf_shim::launch(grid, block, bytes, [=] { kernel(__VA_ARGS__); })
#define VF_SHARED_BYTES(name) unsigned char* const name = vf_shim::shared_bytes
#endif
#define VF_START(kernel, grid, block, stream, ...) VF_START_SHARED(kernel, grid, block, 0, stream, __VA_ARGS__)

#define VF_DEVICE __device__ __forceinline__

namespace vae_fast {
namespace cuda {

constexpr int kWarp = 32;
constexpr int kThreads = 256;  // per block, in every kernel
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kFullMask = 0xffffffffu;
constexpr int kSharedBytes = 48 << 10;  // of a block, without asking the driver for more

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

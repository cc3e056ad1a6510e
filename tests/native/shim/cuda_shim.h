// CUDA's execution model on the CPU, for tests only: every thread of a block is a fiber, barriers and shuffles make fibers wait for each
// other as the hardware would, and blocks run one after another. Warps run as far ahead of each other as barriers let them, and the order
// of blocks, warps and lanes is for tests to change, so that code which needs a barrier it does not have gives different results.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static  // blocks run one at a time

namespace vf_shim {

struct Index {
  unsigned x = 0;
};
struct Thread {
  Index thread, block, block_size, grid_size;
};
extern Thread current;

/// How blocks and threads take turns: 0 forwards, 1 backwards, otherwise shuffled from this seed.
extern unsigned order;

/// Kernels started so far.
extern long launches;

/// `shared` bytes are at shared_bytes while a block runs, with nothing known in them when it begins.
extern unsigned char* shared_bytes;
void launch(unsigned grid, unsigned block, size_t shared, const std::function<void()>& kernel);
/// Copies that a thread has asked for, and that are made when it waits for them: who reads too early reads what was there before.
void copy_later(void* to, const void* from, size_t bytes);
void make_copies();
void barrier();
/// A barrier that tells every thread whether the predicate held for any of the block.
int barrier_or(int predicate);
/// Exchanges `size` bytes among the lanes of a warp: *value becomes that of lane `source`, or stays if there is none.
void exchange(void* value, size_t size, unsigned source);
/// Writes to `all` what the lanes of the warp offer, in their order.
void gather(const void* value, size_t size, void* all);
void check_aligned(const void* p, size_t bytes);
[[noreturn]] void fail(const char* what);

/// v to the nearest TF32 number, halves away from zero, as cvt.rna.tf32.f32.
float to_tf32(float v);
/// sum += a b of a warp's fragments, as mma.sync.m16n8k8 lays them out.
void multiply_add_tf32(float (&sum)[4], const float (&a)[4], float b0, float b1);

template <typename T>
T shuffle_down(unsigned mask, T value, unsigned offset) {
  if (mask != 0xffffffffu) fail("only full-warp shuffles are modelled");
  exchange(&value, sizeof(T), current.thread.x % 32 + offset);
  return value;
}

template <typename T>
T shuffle(unsigned mask, T value, int source) {
  if (mask != 0xffffffffu) fail("only full-warp shuffles are modelled");
  exchange(&value, sizeof(T), static_cast<unsigned>(source) % 32);
  return value;
}

template <typename T>
T shuffle_xor(unsigned mask, T value, unsigned lanes) {
  if (mask != 0xffffffffu) fail("only full-warp shuffles are modelled");
  exchange(&value, sizeof(T), current.thread.x % 32 ^ lanes);
  return value;
}

}  // namespace vf_shim

#define threadIdx (vf_shim::current.thread)
#define blockIdx (vf_shim::current.block)
#define blockDim (vf_shim::current.block_size)
#define gridDim (vf_shim::current.grid_size)
#define __syncthreads vf_shim::barrier
#define __syncthreads_or vf_shim::barrier_or
#define __shfl_down_sync vf_shim::shuffle_down
#define __shfl_sync vf_shim::shuffle
#define __shfl_xor_sync vf_shim::shuffle_xor

#define __pipeline_memcpy_async vf_shim::copy_later
inline void __pipeline_commit() {}
inline void __pipeline_wait_prior(size_t groups) {
  if (groups != 0) vf_shim::fail("only waits for every copy are modelled");
  vf_shim::make_copies();
}

inline void __threadfence() {}
inline unsigned atomicAdd(uint32_t* at, unsigned by) {
  const unsigned before = *at;
  *at += by;
  return before;
}

// How fast fused multiply-adds run when nothing else is in the way: the limit that benchmarks hold arithmetic against.
#include "memory.cuh"

namespace vae_fast {
namespace cuda {

namespace {

constexpr int kChains = 16;         // independent, per thread: more than latency times units
constexpr int kBlocksResident = 8;  // per multiprocessor

__global__ void __launch_bounds__(kThreads) fma_probe_kernel(int64_t iterations, float by, float plus, float* sink) {
  float sum[kChains];
#pragma unroll
  for (int c = 0; c < kChains; ++c) sum[c] = static_cast<float>(c + static_cast<int>(threadIdx.x));
  for (int64_t i = 0; i < iterations; ++i) {
#pragma unroll
    for (int c = 0; c < kChains; ++c) sum[c] = math::fma(sum[c], by, plus);
  }
  float total = 0.0f;
#pragma unroll
  for (int c = 0; c < kChains; ++c) total += sum[c];
  if (total == -1.0f) *sink = total;  // it never is, but the compiler cannot know
}

}  // namespace

cudaError_t fma_probe(int64_t iterations, float* sink, double* flops, cudaStream_t stream) {
  const int64_t blocks = static_cast<int64_t>(processors()) * kBlocksResident;
  VF_START(fma_probe_kernel, static_cast<unsigned>(blocks), kThreads, stream, iterations, 0.5f, 0.25f, sink);
  *flops = 2.0 * static_cast<double>(iterations) * kChains * kThreads * static_cast<double>(blocks);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace vae_fast

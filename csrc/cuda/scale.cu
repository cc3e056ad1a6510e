// data *= *scale, decided on the device: the backward pass of a loss whose gradients the forward pass has written. Nearly always *scale is
// 1 and every thread returns at once.
#include "memory.cuh"

namespace vae_fast {
namespace cuda {

namespace {

template <typename T, typename S>
__global__ void __launch_bounds__(kThreads) scale_kernel(void* data, int64_t count, const S* scale, bool aligned, bool only_exactly) {
  using C = Compute<T>;
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  const S by = *scale;
  if (by == S(1) || (only_exactly && !math::is_power_of_two(by))) return;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, threads = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t vectors = aligned ? count / kVector : 0;
  T* const p = static_cast<T*>(data);
  for (int64_t i = thread; i < vectors; i += threads) {
    Packed<T, kVector> raw;
    load(p + i * kVector, raw);
    C v[kVector];
#pragma unroll
    for (int e = 0; e < kVector; ++e) v[e] = static_cast<C>(unpack<C>(raw, e) * by);
    store(p + i * kVector, v);
  }
  for (int64_t i = vectors * kVector + thread; i < count; i += threads) {
    C v[1];
    load_any<1>(data, kDType<T>, i, 1, 0, 1, v);
    v[0] = static_cast<C>(v[0] * by);
    store_any<1>(data, kDType<T>, i, 1, 0, 1, v);
  }
}

template <typename T>
cudaError_t launch(void* data, int64_t count, const void* scale, bool is_double, bool only_exactly, cudaStream_t stream) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0;
  const int64_t cap = static_cast<int64_t>(processors()) * 16;  // few: starting blocks is all this usually does
  const int64_t blocks = ceil_div(ceil_div(count, kVector), kThreads);
  const unsigned grid = static_cast<unsigned>(blocks < cap ? blocks : cap);
  if (is_double) {
    VF_START((scale_kernel<T, double>), grid, kThreads, stream, data, count, static_cast<const double*>(scale), aligned, only_exactly);
  } else {
    VF_START((scale_kernel<T, float>), grid, kThreads, stream, data, count, static_cast<const float*>(scale), aligned, only_exactly);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t scale_unless_one(void* data, DType dtype, int64_t count, const void* scale, bool is_double, bool only_exactly,
                             cudaStream_t stream) {
  if (count < 0) return cudaErrorInvalidValue;
  if (count == 0) return cudaSuccess;
  switch (dtype) {
    case DType::kFloat:
      return launch<float>(data, count, scale, is_double, only_exactly, stream);
    case DType::kDouble:
      return launch<double>(data, count, scale, is_double, only_exactly, stream);
    case DType::kHalf:
      return launch<Half>(data, count, scale, is_double, only_exactly, stream);
    case DType::kBFloat16:
      return launch<BFloat16>(data, count, scale, is_double, only_exactly, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace cuda
}  // namespace vae_fast

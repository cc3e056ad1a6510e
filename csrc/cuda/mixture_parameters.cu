// The parameters of a diagonal mixture before its kernels, and what the sums of its backward pass are for: one kernel each.
#include "mixture_plan.h"
#include "memory.cuh"
#include "../math/mixture.h"

namespace vae_fast {
namespace cuda {

namespace {

/// v of every thread combined, in every thread.
template <typename Combine>
VF_DEVICE double reduce_block(double v, double (&shared)[kThreads], Combine&& combine) {
  const int thread = static_cast<int>(threadIdx.x);
  shared[thread] = v;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) shared[thread] = combine(shared[thread], shared[thread + half]);
  }
  __syncthreads();
  const double all = shared[0];
  __syncthreads();
  return all;
}
VF_DEVICE double sum_of_block(double v, double (&shared)[kThreads]) {
  return reduce_block(v, shared, [](double a, double b) { return a + b; });
}

/// Whether this is the last block to come here; what the others' first threads wrote before is then to be seen, through volatile pointers.
VF_DEVICE bool last_block(uint32_t* counter, bool* last) {
  if (threadIdx.x == 0) {
    __threadfence();
    *last = atomicAdd(counter, 1u) == gridDim.x - 1;
    if (*last) *counter = 0;
  }
  __syncthreads();
  if (*last) __threadfence();
  return *last;
}

/// A block per component; the last one does what they have in common.
template <typename C>
__global__ void __launch_bounds__(kThreads) mixture_prepare_kernel(const __grid_constant__ MixtureParametersArgs a) {
  __shared__ double shared[kThreads];
  __shared__ bool last;
  const int64_t thread = threadIdx.x;
  const C* const log_std = static_cast<const C*>(a.log_std);
  for (int64_t k = blockIdx.x; k < a.components; k += gridDim.x) {
    double sum = 0.0;
    for (int64_t d = thread; d < a.dims; d += kThreads) {
      const double own = static_cast<double>(log_std[a.spherical ? k : k * a.dims + d]);
      static_cast<C*>(a.scale)[k * a.dims + d] = math::mixture_scale<C>(own);
      sum += own;
    }
    sum = sum_of_block(sum, shared);
    if (thread == 0) a.log_det[k] = -sum;
  }
  if (!last_block(a.counter, &last)) return;

  const volatile double* const log_det = a.log_det;  // other blocks wrote them
  const C* const logits = static_cast<const C*>(a.logits);
  const auto larger = [](double x, double y) { return math::larger(x, y); };
  double largest = -math::infinity<double>(), sum = 0.0, top = largest;
  if (logits != nullptr) {
    for (int64_t k = thread; k < a.components; k += kThreads) largest = math::larger(largest, static_cast<double>(logits[k]));
    largest = reduce_block(largest, shared, larger);
    for (int64_t k = thread; k < a.components; k += kThreads) sum += math::exp(static_cast<double>(logits[k]) - largest);
    sum = math::log(sum_of_block(sum, shared));
  }
#pragma unroll 1
  for (int64_t k = thread; k < a.components; k += kThreads) {
    const double log_weight = logits == nullptr ? 0.0 : static_cast<double>(logits[k]) - largest - sum;
    a.log_weights[k] = log_weight;
    top = math::larger(top, math::mixture_ordinary(log_weight + log_det[k]));
  }
  top = math::mixture_top(reduce_block(top, shared, larger));
  if (thread == 0) *a.baseline = math::mixture_baseline(top, a.dims);
#pragma unroll 1
  for (int64_t k = thread; k < a.components; k += kThreads) {
    const math::MixtureConstant<C> constant(a.log_weights[k] + log_det[k], top);
    static_cast<C*>(a.constant)[k] = constant.high;
    static_cast<C*>(a.constant_low)[k] = constant.low;
  }
  if (a.centre == nullptr) return;
  for (int64_t d0 = 0; d0 < a.dims; d0 += kThreads) {
    const int64_t d = d0 + thread;
    double mean = 0.0;
    for (int64_t k0 = 0; k0 < a.components; k0 += kThreads) {
      if (k0 + thread < a.components) shared[thread] = math::exp(a.log_weights[k0 + thread]);  // written by this very thread
      __syncthreads();
      for (int64_t k = k0; d < a.dims && k < k0 + kThreads && k < a.components; ++k)
        mean += shared[k - k0] * static_cast<double>(static_cast<const C*>(a.means)[k * a.dims + d]);
      __syncthreads();
    }
    if (d < a.dims) a.centre[d] = static_cast<float>(mean);
  }
}

constexpr int kDimsOfBlock = kWarp, kSplit = kThreads / kDimsOfBlock;

/// A block per component, kSplit threads for a dimension, which share the pieces; the last block does what the logits have in common.
template <typename C>
__global__ void __launch_bounds__(kThreads)
    mixture_finish_kernel(const __grid_constant__ MixtureFinishArgs f, const __grid_constant__ PieceSums sums, const int32_t pieces,
                          const int32_t counts_pieces, const int64_t components, const int64_t dims, const C* const scale) {
  __shared__ double shared[kThreads], firsts[kSplit][kDimsOfBlock], seconds[kSplit][kDimsOfBlock];
  __shared__ bool last;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kDimsOfBlock, split = thread / kDimsOfBlock;
  for (int64_t k = blockIdx.x; k < components; k += gridDim.x) {
    double count = 0.0, of_k = 0.0;
    for (int p = thread; p < counts_pieces; p += kThreads) count += sums.counts[p * components + k];
    count = sum_of_block(count, shared);
    if (thread == 0) sums.counts[k] = count;  // no other block reads those of k
    const double less = f.centred ? count : 0.0;
    for (int64_t d0 = 0; d0 < dims; d0 += kDimsOfBlock) {
      const int64_t i = k * dims + d0 + lane;
      double first = 0.0, second = 0.0;
      if (d0 + lane < dims) {
#pragma unroll 4
        for (int p = split; p < pieces; p += kSplit) {
          first += sums.first[p * components * dims + i];
          if (f.grad_log_std != nullptr) second += sums.second[p * components * dims + i];
        }
      }
      firsts[split][lane] = first, seconds[split][lane] = second;
      __syncthreads();
      if (split == 0 && d0 + lane < dims) {
        for (int s = 1; s < kSplit; ++s) first += firsts[s][lane], second += seconds[s][lane];
        if (f.grad_means != nullptr) static_cast<C*>(f.grad_means)[i] = static_cast<C>(first * static_cast<double>(scale[i]));
        if (f.grad_log_std != nullptr && !f.spherical) static_cast<C*>(f.grad_log_std)[i] = static_cast<C>(second - less);
        of_k += second - less;
      }
      __syncthreads();
    }
    if (f.grad_log_std != nullptr && f.spherical) {
      of_k = sum_of_block(of_k, shared);
      if (thread == 0) static_cast<C*>(f.grad_log_std)[k] = static_cast<C>(of_k);
    }
  }
  if (!last_block(f.counter, &last) || f.grad_logits == nullptr) return;
  const volatile double* const counts = sums.counts;
  double all = 0.0;
  for (int64_t k = thread; k < components; k += kThreads) all += counts[k];
  all = sum_of_block(all, shared);
  for (int64_t k = thread; k < components; k += kThreads) {
    const double count = counts[k];
    static_cast<C*>(f.grad_logits)[k] =
        static_cast<C>(f.log_weights == nullptr ? count : math::mixture_logit_gradient(count, f.log_weights[k], all));
  }
}

}  // namespace

template <typename C>
cudaError_t launch_mixture_finish(const MixtureArgs& m, const MixtureFinishArgs& finish, const PieceSums& sums, int32_t pieces,
                                  int32_t counts, cudaStream_t stream) {
  if (finish.counter == nullptr) return cudaErrorInvalidValue;
  VF_START(mixture_finish_kernel<C>, capped_grid(m.components), kThreads, stream, finish, sums, pieces, counts, m.components, m.dims,
           static_cast<const C*>(m.scale));
  return cudaGetLastError();
}
template cudaError_t launch_mixture_finish<float>(const MixtureArgs&, const MixtureFinishArgs&, const PieceSums&, int32_t, int32_t,
                                                  cudaStream_t);
template cudaError_t launch_mixture_finish<double>(const MixtureArgs&, const MixtureFinishArgs&, const PieceSums&, int32_t, int32_t,
                                                   cudaStream_t);

cudaError_t mixture_parameters(const MixtureParametersArgs& a, cudaStream_t stream) {
  if (a.components < 1 || a.dims < 0 || a.counter == nullptr) return cudaErrorInvalidValue;
  if (a.is_double) {
    VF_START(mixture_prepare_kernel<double>, capped_grid(a.components), kThreads, stream, a);
  } else {
    VF_START(mixture_prepare_kernel<float>, capped_grid(a.components), kThreads, stream, a);
  }
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace vae_fast

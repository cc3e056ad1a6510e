#include "device.h"

#include "../math/half.h"
#include "layout.h"
#include "ops.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#if defined(VF_WITH_CUDA)
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>

#include <map>
#include <mutex>
#endif

namespace vae_fast {
namespace ops {

#if defined(VF_WITH_CUDA)
namespace {
/// A counter that is 0 for the kernels of one stream, which leave it 0: within a stream launches follow one another. It lies in static
/// memory, as a stream's first call may come while a graph's pool takes every allocation and expects it back. A graph's is made with it,
/// since its replays may run beside the stream it was captured on; so is that of a stream beyond the counters there are.
uint32_t* counter_of(const at::Tensor& like, c10::cuda::CUDAStream stream, at::Tensor& keep) {
  if (c10::cuda::currentStreamCaptureStatusMayInitCtx() == c10::cuda::CaptureStatus::None) {
    static std::mutex mutex;
    static auto* places = new std::map<std::pair<c10::DeviceIndex, c10::StreamId>, int>();  // outlives CUDA's own teardown
    const std::lock_guard<std::mutex> lock(mutex);
    const int place = places->emplace(std::pair(stream.device_index(), stream.id()), static_cast<int>(places->size())).first->second;
    if (place < cuda::kLossCounters) {
      uint32_t* counter = nullptr;
      C10_CUDA_CHECK(cuda::loss_counter(place, &counter));
      return counter;
    }
  }
  keep = at::zeros({1}, like.options().dtype(at::kInt));
  return reinterpret_cast<uint32_t*>(keep.data_ptr<int>());
}
}  // namespace
#endif

uint32_t* zero_counter(const at::Tensor& like, std::vector<at::Tensor>& keep) {
#if defined(VF_WITH_CUDA)
  if (like.is_cuda()) {
    const c10::cuda::CUDAGuard guard(like.device());
    at::Tensor own;
    uint32_t* const counter = counter_of(like, c10::cuda::getCurrentCUDAStream(), own);
    if (own.defined()) keep.push_back(own);
    return counter;
  }
#else
  (void)keep;
#endif
  TORCH_CHECK(like.is_cpu(), "tensor on ", like.device(), ": this build of vae_fast has no kernels for it (see vae_fast.build_info())");
  return nullptr;
}

void launch_row_terms(const at::Tensor& like, RowTermsArgs& args) {
#if defined(VF_WITH_CUDA)
  if (like.is_cuda() && args.loss != nullptr) {
    const c10::cuda::CUDAGuard guard(like.device());
    const auto stream = c10::cuda::getCurrentCUDAStream();
    at::Tensor keep;
    at::Tensor partials = at::empty({cuda::row_terms_partials(args)}, like.options().dtype(at::kDouble));
    args.partials = partials.data_ptr<double>();
    args.counter = counter_of(like, stream, keep);
    C10_CUDA_CHECK(cuda::row_terms(args, stream));
    return;
  }
#endif
  VF_LAUNCH(like, row_terms, args);
}

double fma_probe(at::Tensor sink, int64_t iterations) {
  TORCH_CHECK_VALUE(sink.scalar_type() == at::kFloat && sink.numel() > 0 && iterations > 0,
                    "sink: expected a float32 tensor, iterations > 0");
#if defined(VF_WITH_CUDA)
  if (sink.is_cuda()) {
    const c10::cuda::CUDAGuard guard(sink.device());
    double flops = 0.0;
    C10_CUDA_CHECK(cuda::fma_probe(iterations, sink.data_ptr<float>(), &flops, c10::cuda::getCurrentCUDAStream()));
    return flops;
  }
#endif
  return cpu::fma_probe(iterations, sink.data_ptr<float>());
}

void set_cuda_tuning(int64_t lanes, int64_t blocks_per_processor, int64_t chunk_bytes) {
#if defined(VF_WITH_CUDA)
  constexpr int64_t kMost = int64_t{1} << 30;
  const auto narrow = [](int64_t n) { return n < 0 || n > kMost ? int32_t{-1} : static_cast<int32_t>(n); };
  const cuda::Tuning tuning{narrow(lanes), narrow(blocks_per_processor), chunk_bytes};
  TORCH_CHECK_VALUE(cuda::set_tuning(tuning) == cudaSuccess, "lanes=", lanes, ", blocks_per_processor=", blocks_per_processor,
                    ", chunk_bytes=", chunk_bytes, ": expected 0, 8, 16, 32, 64, 128 or 256; 0 to 1024; at least 0");
#else
  (void)lanes, (void)blocks_per_processor, (void)chunk_bytes;
  TORCH_CHECK(false, "set_cuda_tuning: the extension was built without CUDA");
#endif
}

void scale_unless_one(at::Tensor& grad, const at::Tensor& upstream, bool only_exactly) {
#if defined(VF_WITH_CUDA)
  if (grad.is_cuda()) {
    const c10::cuda::CUDAGuard guard(grad.device());
    C10_CUDA_CHECK(cuda::scale_unless_one(grad.data_ptr(), dtype_of(grad), grad.numel(), upstream.const_data_ptr(),
                                          upstream.scalar_type() == at::kDouble, only_exactly, c10::cuda::getCurrentCUDAStream()));
    return;
  }
#endif
  const double s = upstream.scalar_type() == at::kDouble ? *upstream.const_data_ptr<double>() : *upstream.const_data_ptr<float>();
  if (s != 1.0 && (!only_exactly || generic::math::is_power_of_two(s))) cpu::scale(grad.data_ptr(), dtype_of(grad), grad.numel(), s);
}

PhiloxSeed draw_seed(const at::Tensor& like, const std::optional<at::Generator>& generator) {
  PhiloxSeed seed;
#if defined(VF_WITH_CUDA)
  if (like.is_cuda()) {
    auto* gen =
        at::get_generator_or_default<at::CUDAGeneratorImpl>(generator, at::cuda::detail::getDefaultCUDAGenerator(like.device().index()));
    const std::lock_guard<std::mutex> lock(gen->mutex_);
    const at::PhiloxCudaState state = gen->philox_cuda_state(4);
    if (state.captured_) {
      seed.seed_at = state.seed_.ptr;
      seed.offset_at = state.offset_.ptr;
      seed.offset = state.offset_intragraph_;
    } else {
      seed.seed = state.seed_.val;
      seed.offset = state.offset_.val;
    }
    return seed;
  }
#endif
  auto* gen = at::get_generator_or_default<at::CPUGeneratorImpl>(generator, at::detail::getDefaultCPUGenerator());
  const std::lock_guard<std::mutex> lock(gen->mutex_);
  seed.seed = gen->random64();
  return seed;
}

Tensor draw_seed_kernel(const Tensor& like, std::optional<at::Generator> generator) {
  const PhiloxSeed drawn = draw_seed(like, generator);
  Tensor state = at::empty({2}, like.options().dtype(at::kLong));
  const auto write = [&](int64_t place, const int64_t* at, uint64_t value) {
    Tensor to = state.select(0, place);
    to.fill_(static_cast<int64_t>(value));
    if (at != nullptr) to.add_(at::from_blob(const_cast<int64_t*>(at), {}, state.options()));  // a graph's own, where it replays
  };
  write(0, drawn.seed_at, drawn.seed);
  write(1, drawn.offset_at, drawn.offset);
  return state;
}

}  // namespace ops
}  // namespace vae_fast

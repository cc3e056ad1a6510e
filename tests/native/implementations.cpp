#include "implementations.h"

#include <cstdio>
#include <cstdlib>

#include "../../csrc/cpu/table.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#elif defined(VF_WITH_CUDA)
#include "cuda_shim.h"
#endif

namespace native {

namespace {

/// Ordinary memory: the CPU kernels' and the shim's.
struct HostMemory : Memory {
  void* allocate(size_t bytes) override { return std::malloc(bytes); }
  void release(void* p) override { std::free(p); }
  void write(void* to, const void* from, size_t bytes) override { copy(to, from, bytes); }
  void read(void* to, const void* from, size_t bytes) override { copy(to, from, bytes); }

 private:
  static void copy(void* to, const void* from, size_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);  // from an empty vector's null otherwise
  }
};
HostMemory host_memory;

#if defined(VF_WITH_CUDA)

void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
#if defined(__CUDACC__)
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
#else
  std::fprintf(stderr, "%s: error %d\n", what, static_cast<int>(error));
#endif
  std::exit(3);
}

#if defined(__CUDACC__)
struct DeviceMemory : Memory {
  void* allocate(size_t bytes) override {
    void* p = nullptr;
    require(cudaMalloc(&p, bytes), "cudaMalloc");
    return p;
  }
  void release(void* p) override { require(cudaFree(p), "cudaFree"); }
  void write(void* to, const void* from, size_t bytes) override { require(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "upload"); }
  void read(void* to, const void* from, size_t bytes) override { require(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "download"); }
};
DeviceMemory cuda_memory;
void finish(const char* what) { require(cudaDeviceSynchronize(), what); }
#else
HostMemory& cuda_memory = host_memory;
void finish(const char*) {}
#endif

void require_zero(uint32_t* counter, const std::string& who) {
  uint32_t count = 0;
  if (counter != nullptr) cuda_memory.read(&count, counter, sizeof(count));
  if (count != 0) require(static_cast<cudaError_t>(1), (who + " left its counter at another value than 0").c_str());
}

/// The CUDA kernels: on a device, or the same source on the shim.
Implementation cuda_implementation() {
  namespace cuda = vae_fast::cuda;
  Implementation i;
  i.cuda = true;
  i.memory = &cuda_memory;
  i.row_terms = [](const vae_fast::RowTermsArgs& given) {
    vae_fast::RowTermsArgs args = given;
    const size_t sums = static_cast<size_t>(cuda::row_terms_partials(args));
    Block partials(cuda_memory, sums * sizeof(double));
    static int which = 0;  // a counter for each call, the last and the first ones too
    which = (which + 1) % cuda::kLossCounters;
    uint32_t *counter = nullptr, *next = nullptr;
    require(cuda::loss_counter(which, &counter), "loss_counter");
    if (which > 0) require(cuda::loss_counter(which - 1, &next), "loss_counter");
    if (next == counter || cuda::loss_counter(cuda::kLossCounters, &next) == cudaSuccess || cuda::loss_counter(-1, &next) == cudaSuccess)
      require(static_cast<cudaError_t>(1), "loss_counter gave one counter twice, or one that is not there");
    if (args.loss != nullptr) {
      args.partials = static_cast<double*>(partials.data());
      args.counter = counter;
    }
    require(cuda::row_terms(args, nullptr), "row_terms");
    finish("row_terms");
    require_zero(counter, "row_terms");
  };
  i.sample = [](const vae_fast::SampleArgs& args) { require(cuda::sample(args, nullptr), "sample"), finish("sample"); };
  i.sample_backward = [](const vae_fast::SampleBackwardArgs& args) {
    require(cuda::sample_backward(args, nullptr), "sample_backward"), finish("sample_backward");
  };
  i.logsumexp = [](const vae_fast::LogSumExpArgs& args) { require(cuda::logsumexp(args, nullptr), "logsumexp"), finish("logsumexp"); };
  i.logsumexp_backward = [](const vae_fast::LogSumExpBackwardArgs& args) {
    require(cuda::logsumexp_backward(args, nullptr), "logsumexp_backward"), finish("logsumexp_backward");
  };
  i.mixture = [](const vae_fast::MixtureForwardArgs& args) { require(cuda::mixture(args, nullptr), "mixture"), finish("mixture"); };
  i.mixture_backward = [](const vae_fast::MixtureBackwardArgs& given) {
    vae_fast::MixtureBackwardArgs args = given;
    vae_fast::MixtureFinishArgs last;
    if (given.finish != nullptr) {
      last = *given.finish;
      require(cuda::loss_counter(0, &last.counter), "loss_counter");
      args.finish = &last;
    }
    Block scratch(cuda_memory, static_cast<size_t>(cuda::mixture_scratch_bytes(args)));
    args.scratch = scratch.data();
    require(cuda::mixture_backward(args, nullptr), "mixture_backward"), finish("mixture_backward");
    require_zero(last.counter, "mixture_backward");
  };
  i.mixture_parameters = [](const vae_fast::MixtureParametersArgs& given) {
    vae_fast::MixtureParametersArgs args = given;
    require(cuda::loss_counter(0, &args.counter), "loss_counter");
    require(cuda::mixture_parameters(args, nullptr), "mixture_parameters"), finish("mixture_parameters");
    require_zero(args.counter, "mixture_parameters");
  };
  i.mdn = [](const vae_fast::MdnArgs& args) { require(cuda::mdn(args, nullptr), "mdn"), finish("mdn"); };
  i.mdn_backward = [](const vae_fast::MdnBackwardArgs& args) {
    require(cuda::mdn_backward(args, nullptr), "mdn_backward"), finish("mdn_backward");
  };
  i.softmax_terms = [](const vae_fast::SoftmaxArgs& given) {
    vae_fast::SoftmaxArgs args = given;
    Block scratch(cuda_memory, static_cast<size_t>(cuda::softmax_scratch(args)) * (args.is_double ? 8 : 4));
    args.scratch = scratch.data();
    require(cuda::softmax_terms(args, nullptr), "softmax_terms"), finish("softmax_terms");
  };
  i.group_terms = [](const vae_fast::GroupArgs& given) {
    vae_fast::GroupArgs args = given;
    Block partials(cuda_memory, static_cast<size_t>(cuda::group_terms_partials(args)) * sizeof(double));
    args.partials = static_cast<double*>(partials.data());
    require(cuda::group_terms(args, nullptr), "group_terms"), finish("group_terms");
  };
  i.scale = [](void* data, DType dtype, int64_t count, double by) {
    const bool is_double = dtype == DType::kDouble;
    Block scale(cuda_memory, is_double ? 8 : 4);
    const float single = static_cast<float>(by);
    scale.write(is_double ? static_cast<const void*>(&by) : &single);
    require(cuda::scale_unless_one(data, dtype, count, scale.data(), is_double, false, nullptr), "scale_unless_one"),
        finish("scale_unless_one");
  };
  i.tune = [](int lanes, int blocks, long chunk) { return cuda::set_tuning({lanes, blocks, chunk}) == cudaSuccess; };
#if defined(__CUDACC__)
  i.name = "cuda";
  i.device = true;
#else
  i.name = "cuda-shim";
  i.launches = [] { return vf_shim::launches; };
  i.disturb = [](unsigned by) { vf_shim::order = by % 3 == 2 ? by + 2 : by % 3; };
#endif
  return i;
}

#endif  // VF_WITH_CUDA

#if defined(VF_NATIVE_CPU)

/// The CPU kernels of one instruction set.
Implementation cpu_implementation(const char* isa) {
  namespace cpu = vae_fast::cpu;
  const auto with_isa = [isa](auto kernel) {
    return [isa, kernel](auto&&... args) {
      cpu::use_isa(isa);
      kernel(args...);
    };
  };
  Implementation i;
  i.name = std::string("cpu-") + isa;
  i.memory = &host_memory;
  i.row_terms = with_isa(cpu::row_terms);
  i.sample = with_isa(cpu::sample);
  i.sample_backward = with_isa(cpu::sample_backward);
  i.logsumexp = with_isa(cpu::logsumexp);
  i.logsumexp_backward = with_isa(cpu::logsumexp_backward);
  i.mixture_parameters = with_isa(cpu::mixture_parameters);
  i.mixture = with_isa(cpu::mixture);
  i.mixture_backward = with_isa(cpu::mixture_backward);
  i.mdn = with_isa(cpu::mdn);
  i.mdn_backward = with_isa(cpu::mdn_backward);
  i.group_terms = with_isa(cpu::group_terms);
  i.softmax_terms = with_isa(cpu::softmax_terms);
  i.scale = with_isa(cpu::scale);
  return i;
}

#endif  // VF_NATIVE_CPU

}  // namespace

std::vector<Implementation> implementations() {
  std::vector<Implementation> all;
#if defined(VF_WITH_CUDA)
  all.push_back(cuda_implementation());
#endif
#if defined(VF_NATIVE_CPU)
  for (const char* const* isa = vae_fast::cpu::isa_available(); *isa != nullptr; ++isa) all.push_back(cpu_implementation(*isa));
#endif
  return all;
}

}  // namespace native

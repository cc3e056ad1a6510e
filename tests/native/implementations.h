// What the checks are run over: implementations of the functions of csrc/kernels.h.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "arrays.h"

namespace native {

struct Implementation {
  std::string name;
  Memory* memory = nullptr;
  std::function<void(const vae_fast::RowTermsArgs&)> row_terms;
  std::function<void(const vae_fast::SampleArgs&)> sample;
  std::function<void(const vae_fast::SampleBackwardArgs&)> sample_backward;
  std::function<void(const vae_fast::LogSumExpArgs&)> logsumexp;
  std::function<void(const vae_fast::LogSumExpBackwardArgs&)> logsumexp_backward;
  std::function<void(void* data, DType dtype, int64_t count, double by)> scale;
  // Empty where an implementation lacks them.
  std::function<void(const vae_fast::MixtureParametersArgs&)> mixture_parameters = {};
  std::function<void(const vae_fast::MixtureForwardArgs&)> mixture = {};
  std::function<void(const vae_fast::MixtureBackwardArgs&)> mixture_backward = {};
  std::function<void(const vae_fast::MdnArgs&)> mdn = {};
  std::function<void(const vae_fast::MdnBackwardArgs&)> mdn_backward = {};
  std::function<void(const vae_fast::GroupArgs&)> group_terms = {};
  std::function<void(const vae_fast::SoftmaxArgs&)> softmax_terms = {};
  /// Changes what must not change a result: the order of threads, say. May be empty.
  std::function<void(unsigned)> disturb;
  /// Holds the host's choices at other values: lanes, blocks of a processor, bytes of a chunk (0: its own); whether they are any. May be
  /// empty.
  std::function<bool(int lanes, int blocks, long chunk)> tune = {};
  /// Kernels started so far. May be empty.
  std::function<long()> launches = {};
  bool cuda = false;    // the CUDA kernels, on a device or on the shim
  bool device = false;  // a real device: large inputs are affordable
};

/// Every implementation that this binary was built with, and of the CPU's one for each instruction set that this processor runs.
std::vector<Implementation> implementations();

void check_philox();
void check_gamma();
void check_exponential();
void check_row_terms(Implementation& implementation, int rounds);
void check_row_terms_edges(Implementation& implementation);
void check_sample(Implementation& implementation, int rounds);
void check_logsumexp(Implementation& implementation, int rounds);
void check_scale(Implementation& implementation);
void check_mixture(Implementation& implementation, int rounds);
/// Densities of each dimension by itself, and weights of each row.
void check_mixture_dims(Implementation& implementation, int rounds);
/// What mixtures' kernels are given, and the gradients of what they were made from.
void check_mixture_parameters(Implementation& implementation, int rounds);
/// Mixtures on tensor cores: how far off, and where.
void check_mixture_products(Implementation& implementation);
void check_mdn(Implementation& implementation, int rounds);
/// Terms over groups of parameters.
void check_groups(Implementation& implementation, int rounds);
/// Softmaxes over classes.
void check_softmax(Implementation& implementation, int rounds);
/// More than 2^31 elements and rows.
void check_huge(Implementation& implementation);

}  // namespace native

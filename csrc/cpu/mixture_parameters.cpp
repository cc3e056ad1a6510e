// The parameters of a diagonal mixture before its loops, and what the sums of its backward pass are for.
#include <vector>

#include "../math/mixture.h"
#include "../kernels.h"
#include "parallel.h"

namespace vae_fast {
namespace cpu {
namespace {

namespace math = generic::math;

template <typename T>
void prepare(const MixtureParametersArgs& a) {
  const T* const log_std = static_cast<const T*>(a.log_std);
  const T* const logits = static_cast<const T*>(a.logits);
  T* const scale = static_cast<T*>(a.scale);
  for_blocks(a.components, 8 * a.dims, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      double sum = 0.0;
      for (int64_t d = 0; d < a.dims; ++d) {
        const double own = static_cast<double>(log_std[a.spherical ? k : k * a.dims + d]);
        scale[k * a.dims + d] = a.spherical && d > 0 ? scale[k * a.dims] : math::mixture_scale<T>(own);
        sum += own;
      }
      a.log_det[k] = -sum;
    }
  });
  double largest = -math::infinity<double>(), sum = 0.0, top = largest;
  for (int64_t k = 0; logits != nullptr && k < a.components; ++k) largest = math::larger(largest, static_cast<double>(logits[k]));
  for (int64_t k = 0; logits != nullptr && k < a.components; ++k) sum += math::exp(static_cast<double>(logits[k]) - largest);
  for (int64_t k = 0; k < a.components; ++k) {
    a.log_weights[k] = logits == nullptr ? 0.0 : static_cast<double>(logits[k]) - largest - math::log(sum);
    top = math::larger(top, math::mixture_ordinary(a.log_weights[k] + a.log_det[k]));
  }
  top = math::mixture_top(top);
  *a.baseline = math::mixture_baseline(top, a.dims);
  for (int64_t k = 0; k < a.components; ++k) {
    const math::MixtureConstant<T> constant(a.log_weights[k] + a.log_det[k], top);
    static_cast<T*>(a.constant)[k] = constant.high;
    static_cast<T*>(a.constant_low)[k] = constant.low;
  }
  if (a.centre == nullptr) return;
  std::vector<double> centre(static_cast<size_t>(a.dims), 0.0);
  for (int64_t k = 0; k < a.components; ++k) {
    const double weight = math::exp(a.log_weights[k]);
    for (int64_t d = 0; d < a.dims; ++d) {
      centre[static_cast<size_t>(d)] += weight * static_cast<double>(static_cast<const T*>(a.means)[k * a.dims + d]);
    }
  }
  for (int64_t d = 0; d < a.dims; ++d) a.centre[d] = static_cast<float>(centre[static_cast<size_t>(d)]);
}

template <typename T>
void finish(const MixtureArgs& m, const MixtureFinishArgs& f, const double* counts, const double* first, const double* second) {
  const T* const scale = static_cast<const T*>(m.scale);
  double all = 0.0;
  for (int64_t k = 0; k < m.components; ++k) all += counts[k];
  for_blocks(m.components, 2 * m.dims, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      if (f.grad_logits != nullptr) {
        const double of_k = f.log_weights == nullptr ? counts[k] : math::mixture_logit_gradient(counts[k], f.log_weights[k], all);
        static_cast<T*>(f.grad_logits)[k] = static_cast<T>(of_k);
      }
      const double less = f.centred ? counts[k] : 0.0;
      double sum = 0.0;
      for (int64_t i = k * m.dims; i < (k + 1) * m.dims; ++i) {
        if (f.grad_means != nullptr) static_cast<T*>(f.grad_means)[i] = static_cast<T>(first[i] * static_cast<double>(scale[i]));
        if (f.grad_log_std == nullptr) continue;
        if (!f.spherical) static_cast<T*>(f.grad_log_std)[i] = static_cast<T>(second[i] - less);
        sum += second[i] - less;
      }
      if (f.spherical && f.grad_log_std != nullptr) static_cast<T*>(f.grad_log_std)[k] = static_cast<T>(sum);
    }
  });
}

}  // namespace

void mixture_parameters(const MixtureParametersArgs& a) { a.is_double ? prepare<double>(a) : prepare<float>(a); }

void mixture_finish(const MixtureArgs& m, const MixtureFinishArgs& f, const double* counts, const double* first, const double* second) {
  m.is_double ? finish<double>(m, f, counts, first, second) : finish<float>(m, f, counts, first, second);
}

}  // namespace cpu
}  // namespace vae_fast

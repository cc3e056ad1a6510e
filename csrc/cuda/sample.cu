// Host side of sampling: which kernel takes a call, and how its threads share the rows.
#include "sample_plan.cuh"

namespace vae_fast {
namespace cuda {

namespace {

/// Whether every stream of a call holds T in rows that can be moved four elements at a time.
template <typename T>
struct Vectors {
  bool all;

  explicit Vectors(int64_t columns) : all(columns % kQuad == 0) {}
  void add(const Stream& s, bool written) {
    if (s.data != nullptr) all = all && vector_access<T, kQuad>(s) && !(written && s.inner_stride == 0);
  }
  void add_priors(const TermArgs& kl) {
    for (int i = 2; i < AllTerms::inputs(kl.term); ++i) {
      add(kl.in[i], false);
      add(kl.grad[i], true);
    }
  }
};

template <typename T>
bool fits_vectors(const SampleArgs& args) {
  Vectors<T> v(args.columns);
  v.add(args.mu, false);
  v.add(args.scale, false);
  v.add(args.noise, false);
  v.add(args.z, true);
  if (args.with_kl) v.add_priors(args.kl);
  return v.all;
}

template <typename T>
bool fits_vectors(const SampleBackwardArgs& args) {
  Vectors<T> v(args.columns);
  v.add(args.mu, false);
  v.add(args.scale, false);
  v.add(args.noise, false);
  v.add(args.grad_z, false);
  v.add(args.grad_mu, true);
  v.add(args.grad_scale, true);
  if (args.with_kl) v.add_priors(args.kl);
  return v.all;
}

/// Calls f(T()) with the data type of the kernel that takes the call.
template <typename Args, typename F>
cudaError_t with_kernel(const Args& args, F&& f) {
  if (args.is_double) return f(Any<double>());
  if (fits_vectors<float>(args)) return f(float());
  if (fits_vectors<BFloat16>(args)) return f(BFloat16());
  if (fits_vectors<Half>(args)) return f(Half());
  return f(Any<float>());
}

template <typename C, typename Args>
SamplePlan<C> plan_of(const Args& args, int64_t rows) {
  SamplePlan<C> plan;
  const bool aligned = args.columns % kQuad == 0;
  plan.groups = Groups::choose(rows, ceil_div(args.columns + (aligned ? 0 : kQuad - 1), kQuad), 1);
  if (args.with_kl) {
    plan.params = AllTerms::params<C>(args.kl);
    plan.kl_inputs = AllTerms::inputs(args.kl.term);
  }
  return plan;
}

template <typename Args>
bool valid(const Args& args) {
  return args.samples >= 0 && args.rows >= 0 && args.columns >= 0 && args.form >= 0 && args.form < 5 &&
         (!args.with_kl || is_kl(args.kl.term));
}

}  // namespace

cudaError_t sample(const SampleArgs& args, cudaStream_t stream) {
  if (!valid(args)) return cudaErrorInvalidValue;
  if (args.with_kl && args.samples == 0) {  // nothing to draw, but a KL to sum
    RowTermsArgs kl;
    kl.term[0] = args.kl;
    kl.rows = args.rows;
    kl.is_double = args.is_double;
    kl.value = args.kl_value;
    return row_terms(kl, stream);
  }
  const int64_t rows = args.samples * args.rows;
  return with_kernel(args, [&](auto type) {
    using T = decltype(type);
    const auto plan = plan_of<Compute<T>>(args, rows);
    const unsigned grid = capped_grid(ceil_div(rows, plan.groups.rows_per_block));
    return grid == 0 ? cudaSuccess : launch_sample<T>(args, plan, grid, stream);
  });
}

cudaError_t sample_backward(const SampleBackwardArgs& args, cudaStream_t stream) {
  if (!valid(args)) return cudaErrorInvalidValue;
  return with_kernel(args, [&](auto type) {
    using T = decltype(type);
    const auto plan = plan_of<Compute<T>>(args, args.rows);
    const unsigned grid = capped_grid(ceil_div(args.rows, plan.groups.rows_per_block));
    return grid == 0 || args.columns == 0 ? cudaSuccess : launch_sample_backward<T>(args, plan, grid, stream);
  });
}

}  // namespace cuda
}  // namespace vae_fast

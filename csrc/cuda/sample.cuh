// z = mu + std * noise and its gradients, with the KL of the same tensors in the same pass. A group of threads takes a row (of one sample);
// a thread takes four elements that share a Philox block.
//
// Kernels are compiled for one data type T of all tensors, whose rows are moved four elements at a time, and for Any, where types and
// layouts are looked at for every element; double takes the latter.
#pragma once

#include "../math/philox.h"
#include "sample_plan.cuh"

namespace vae_fast {
namespace cuda {

struct Seed {
  uint64_t seed, offset;

  VF_DEVICE explicit Seed(const PhiloxSeed& p)
      : seed(p.seed_at != nullptr ? static_cast<uint64_t>(*p.seed_at) : p.seed),
        offset(p.offset + (p.offset_at != nullptr ? static_cast<uint64_t>(*p.offset_at) : 0)) {}
};

/// The normals of elements first .. first + 3: of one block, or of two if they straddle one.
template <typename C>
VF_DEVICE void draw(const Seed& s, int64_t first, C (&noise)[kQuad]) {
  const uint64_t block = static_cast<uint64_t>(first) >> 2;
  const int skip = static_cast<int>(first) & 3;
  float z[2 * kQuad] = {};
  math::normal4(s.seed, s.offset, block, z[0], z[1], z[2], z[3]);
  if (skip != 0) {
    math::normal4(s.seed, s.offset, block + 1, z[4], z[5], z[6], z[7]);
    if ((skip & 1) != 0) {
#pragma unroll
      for (int e = 0; e < 6; ++e) z[e] = z[e + 1];
    }
    if ((skip & 2) != 0) {
#pragma unroll
      for (int e = 0; e < kQuad; ++e) z[e] = z[e + 2];
    }
  }
#pragma unroll
  for (int e = 0; e < kQuad; ++e) noise[e] = static_cast<C>(z[e]);
}

/// Four columns of a row from column c, of which those in [from, to) are there.
struct Quad {
  int64_t c;
  int from, to;

  VF_DEVICE Quad(int64_t column, int64_t columns) : c(column), from(column < 0 ? static_cast<int>(-column) : 0), to(kQuad) {
    if (columns - column < kQuad) to = static_cast<int>(columns - column);
  }
};

template <typename T, typename C>
VF_DEVICE void load_quad(const Stream& s, const char* row, const Quad& q, C (&v)[kQuad]) {
  if constexpr (kIsAny<T>) {
    const int64_t stride = s.inner_stride;
    load_any<kQuad>(row, s.dtype, q.c * stride, stride, q.from, q.to, v);
  } else {
    Packed<T, kQuad> raw;
    const T* p = reinterpret_cast<const T*>(row);
    if (s.inner_stride == 0) {
      splat(p, raw);
    } else {
      load(p + q.c, raw);
    }
#pragma unroll
    for (int e = 0; e < kQuad; ++e) v[e] = unpack<C>(raw, e);
  }
}

template <typename T, typename C>
VF_DEVICE void store_quad(const Stream& s, char* row, const Quad& q, const C (&v)[kQuad]) {
  if constexpr (kIsAny<T>) {
    store_any<kQuad>(row, s.dtype, q.c, 1, q.from, q.to, v);
  } else {
    store(reinterpret_cast<T*>(row) + q.c, v);
  }
}

/// Sample and row of row `q` of all samples.
VF_DEVICE void split_row(int64_t q, int64_t rows, int64_t& sample, int64_t& row) {
  sample = q < rows ? 0 : q / rows;
  row = q - sample * rows;
}

/// Whether the elements of a quad take turns at a KL.
template <typename Term, typename T>
constexpr bool kRolled = kIsAny<T> || kIsLong<Term>;

/// Blocks that shall fit on a multiprocessor, as many as the registers allow without spilling.
template <typename T>
constexpr int kResidentSampling = sizeof(Compute<T>) == 8 ? 1
                                  : kIsAny<T>             ? 2
                                                          : 3;

template <typename T, bool kKl>
__global__ void __launch_bounds__(kThreads, kResidentSampling<T>)
    sample_kernel(const __grid_constant__ SampleArgs args, const __grid_constant__ SamplePlan<Compute<T>> plan) {
  using C = Compute<T>;
  __shared__ double shared[2][kWarps];
  const Place place(plan.groups);
  const int lanes = plan.groups.lanes;
  int round = 0;
  const Seed seed(args.philox);
  const bool drawn = args.noise.data == nullptr;
  if (args.rng_state != nullptr && blockIdx.x == 0 && threadIdx.x == 0) {
    args.rng_state[0] = static_cast<int64_t>(seed.seed);
    args.rng_state[1] = static_cast<int64_t>(seed.offset);
  }
  const int64_t all_rows = args.samples * args.rows;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * plan.groups.rows_per_block;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * plan.groups.rows_per_block; first < all_rows; first += stride) {
    const int64_t q = first + place.group;
    const bool active = place.used && q < all_rows;
    int64_t sample = 0, row = 0;
    double sum = 0.0;
    if (active) {
      split_row(q, args.rows, sample, row);
      const bool with_kl = kKl && sample == 0;
      const char* const mu = row_start(args.mu, row);
      const char* const scale = row_start(args.scale, row);
      const char* const prior_mu = kKl && plan.kl_inputs > 2 ? row_start(args.kl.in[2], row) : nullptr;
      const char* const prior_scale = kKl && plan.kl_inputs > 2 ? row_start(args.kl.in[3], row) : nullptr;
      const char* const noise_row = drawn ? nullptr : row_start(args.noise, q);
      char* const z_row = row_start(args.z, q);
      const int64_t first_element = q * args.columns;
      const int skip = drawn ? static_cast<int>(first_element & 3) : 0;  // quads begin where Philox blocks do
      for (int64_t c = static_cast<int64_t>(place.lane) * kQuad - skip; c < args.columns; c += static_cast<int64_t>(lanes) * kQuad) {
        const Quad quad(c, args.columns);
        C v[kMaxTermInputs][kQuad], noise[kQuad], z[kQuad];
        load_quad<T>(args.mu, mu, quad, v[0]);
        load_quad<T>(args.scale, scale, quad, v[1]);
        if (drawn) {
          draw(seed, first_element + c, noise);
        } else {
          load_quad<T>(args.noise, noise_row, quad, noise);
        }
        with_form(args.form, [&](auto form) {
#pragma unroll
          for (int e = 0; e < kQuad; ++e) z[e] = math::Scale<decltype(form)::value, C>(v[1][e]).sample(v[0][e], noise[e]);
        });
        store_quad<T>(args.z, z_row, quad, z);
        if (!with_kl) continue;
        if (plan.kl_inputs > 2) {
          load_quad<T>(args.kl.in[2], prior_mu, quad, v[2]);
          load_quad<T>(args.kl.in[3], prior_scale, quad, v[3]);
        }
        sum += static_cast<double>(KlTerms::call(args.kl.term, [&](auto which) {
          return evaluate<typename decltype(which)::type, false, kRolled<typename decltype(which)::type, T>>(plan.params, C(0), quad.from,
                                                                                                             quad.to, v);
        }));
      }
    }
    if (!kKl || first >= args.rows) continue;  // only the first sample's rows have a KL
    sum = combine_group(sum, plan.groups, place, shared, round, Sum());
    if (active && sample == 0 && place.lane == 0) static_cast<C*>(args.kl_value)[row] = static_cast<C>(args.kl.coefficient * sum);
  }
}

/// Adds the gradients that reach a quad through all samples to those of mu and of std. Sums of 32 samples are added up in turn, which keeps
/// the rounding error of thousands of samples near that of a hundred.
template <typename T, typename C>
VF_DEVICE void sum_samples(const SampleBackwardArgs& args, const Seed& seed, int64_t row, const Quad& quad, C (&d_mu)[kQuad],
                           C (&d_std)[kQuad]) {
  constexpr int64_t kRun = 32;
  for (int64_t begin = 0; begin < args.samples; begin += kRun) {
    const int64_t end = begin + kRun < args.samples ? begin + kRun : args.samples;
    C run_mu[kQuad] = {}, run_std[kQuad] = {};
#pragma unroll 1
    for (int64_t s = begin; s < end; ++s) {
      const int64_t q = s * args.rows + row;
      C g[kQuad], noise[kQuad] = {};
      load_quad<T>(args.grad_z, row_start(args.grad_z, q), quad, g);
      if (args.noise.data != nullptr) {
        load_quad<T>(args.noise, row_start(args.noise, q), quad, noise);
      } else if (args.grad_scale.data != nullptr) {
        draw(seed, q * args.columns + quad.c, noise);
      }
#pragma unroll
      for (int e = 0; e < kQuad; ++e) {
        run_mu[e] += g[e];
        run_std[e] += g[e] * noise[e];
      }
    }
#pragma unroll
    for (int e = 0; e < kQuad; ++e) {
      d_mu[e] += run_mu[e];
      d_std[e] += run_std[e];
    }
  }
}

template <typename T, bool kKl>
__global__ void __launch_bounds__(kThreads, kResidentSampling<T>)
    sample_backward_kernel(const __grid_constant__ SampleBackwardArgs args, const __grid_constant__ SamplePlan<Compute<T>> plan) {
  using C = Compute<T>;
  const Place place(plan.groups);
  if (!place.used) return;
  const Seed seed(args.philox);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * plan.groups.rows_per_block;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * plan.groups.rows_per_block + place.group; row < args.rows; row += stride) {
    C g = static_cast<C>(args.kl.row_grad.constant);
    if (kKl && args.kl.row_grad.data != nullptr) g *= static_cast<const C*>(args.kl.row_grad.data)[row * args.kl.row_grad.stride];
    const int skip = args.noise.data == nullptr ? static_cast<int>((row * args.columns) & 3) : 0;
    const int64_t step = static_cast<int64_t>(plan.groups.lanes) * kQuad;
    for (int64_t c = static_cast<int64_t>(place.lane) * kQuad - skip; c < args.columns; c += step) {
      const Quad quad(c, args.columns);
      C v[kMaxTermInputs][kQuad] = {}, d_mu[kQuad] = {}, d_scale[kQuad] = {};
      load_quad<T>(args.scale, row_start(args.scale, row), quad, v[1]);
      if (args.grad_z.data != nullptr) {
        sum_samples<T>(args, seed, row, quad, d_mu, d_scale);
        with_form(args.form, [&](auto form) {
#pragma unroll
          for (int e = 0; e < kQuad; ++e) {
            const math::Scale<decltype(form)::value, C> scale(v[1][e]);
            C part, rest;
            scale.std_factors(part, rest);
            d_scale[e] = scale.times_d_std(d_scale[e], part, rest);
          }
        });
      }
      if (kKl) {
        load_quad<T>(args.mu, row_start(args.mu, row), quad, v[0]);
        if (plan.kl_inputs > 2) {
          load_quad<T>(args.kl.in[2], row_start(args.kl.in[2], row), quad, v[2]);
          load_quad<T>(args.kl.in[3], row_start(args.kl.in[3], row), quad, v[3]);
        }
        KlTerms::call(args.kl.term, [&](auto which) {
          return evaluate<typename decltype(which)::type, true, kRolled<typename decltype(which)::type, T>>(plan.params, g, quad.from,
                                                                                                            quad.to, v);
        });
#pragma unroll
        for (int e = 0; e < kQuad; ++e) {
          d_mu[e] += v[0][e];
          d_scale[e] += v[1][e];
        }
#pragma unroll
        for (int i = 2; i < kMaxTermInputs; ++i) {
          const Stream& grad = args.kl.grad[i];
          if (grad.data != nullptr) store_quad<T>(grad, row_start(grad, row), quad, v[i]);
        }
      }
      if (args.grad_mu.data != nullptr) store_quad<T>(args.grad_mu, row_start(args.grad_mu, row), quad, d_mu);
      if (args.grad_scale.data != nullptr) store_quad<T>(args.grad_scale, row_start(args.grad_scale, row), quad, d_scale);
    }
  }
}

template <typename T>
cudaError_t launch_sample(const SampleArgs& args, const SamplePlan<Compute<T>>& plan, unsigned grid, cudaStream_t stream) {
  if (args.with_kl) {
    VF_START((sample_kernel<T, true>), grid, kThreads, stream, args, plan);
  } else {
    VF_START((sample_kernel<T, false>), grid, kThreads, stream, args, plan);
  }
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch_sample_backward(const SampleBackwardArgs& args, const SamplePlan<Compute<T>>& plan, unsigned grid, cudaStream_t stream) {
  if (args.with_kl) {
    VF_START((sample_backward_kernel<T, true>), grid, kThreads, stream, args, plan);
  } else {
    VF_START((sample_backward_kernel<T, false>), grid, kThreads, stream, args, plan);
  }
  return cudaGetLastError();
}

#define VF_INSTANTIATE_SAMPLE(T)                                                                                   \
  template cudaError_t launch_sample<T>(const SampleArgs&, const SamplePlan<Compute<T>>&, unsigned, cudaStream_t); \
  template cudaError_t launch_sample_backward<T>(const SampleBackwardArgs&, const SamplePlan<Compute<T>>&, unsigned, cudaStream_t);

}  // namespace cuda
}  // namespace vae_fast

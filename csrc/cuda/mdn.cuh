// Mixtures whose parameters come with each row: a warp, or a power of two of its lanes, per row. The lanes of a row lie side by side over
// the dimensions of a component, a run of them each, and then over the components.
#pragma once

#include "groups.cuh"
#include "mdn_rows.cuh"
#include "mixture_running_sum.cuh"

namespace vae_fast {
namespace cuda {

constexpr int kMdnRun = 4;  // dimensions that a lane holds at once
/// Components whose l a warp keeps in shared memory for the second time through its row.
template <typename C>
constexpr int kMdnCached = 2048 / static_cast<int>(sizeof(C));

struct MdnShape {
  int32_t of_dims = 1, of_components = 1;  // lanes; powers of two
  int32_t runs = 1;                        // of dimensions per lane
  int32_t lanes() const { return of_dims * of_components; }
};

template <typename C>
VF_DEVICE RunningSum<C> merge_lanes(RunningSum<C> v, int from, int to) {
  for (int bit = from; bit < to; bit *= 2) {
    const unsigned by = static_cast<unsigned>(bit);
    v.add(RunningSum<C>{__shfl_xor_sync(kFullMask, v.shift, by), __shfl_xor_sync(kFullMask, v.total, by)});
  }
  return v;
}

/// One row as a lane sees it. Rows beyond the last read as row 0, so that every lane comes to every shuffle.
template <typename C>
struct MdnRow {
  const MdnArgs& args;
  const MdnShape& shape;
  const char *y, *logits, *means, *scale;
  int components, dims, of_dims, component;  // the last two: this lane's place
  C floor, log_weight_shift, log_weight_total;

  VF_DEVICE MdnRow(const MdnArgs& a, const MdnShape& s, int64_t row)
      : args(a),
        shape(s),
        y(row_start(a.y, row)),
        logits(row_start(a.logits, row)),
        means(row_start(a.means, row)),
        scale(row_start(a.scale, row)),
        components(static_cast<int>(a.components)),
        dims(static_cast<int>(a.dims)),
        of_dims(static_cast<int>(threadIdx.x) % s.of_dims),
        component(static_cast<int>(threadIdx.x) / s.of_dims % s.of_components),
        floor(static_cast<C>(a.floor)) {
    RunningSum<C> sum = RunningSum<C>::zero();
    for (int k = component; k < components; k += s.of_components) {
      sum.add(logit(k));
    }
    sum = merge_lanes(sum, s.of_dims, s.of_dims * s.of_components);
    log_weight_shift = sum.shift;
    log_weight_total = math::log(sum.total);
  }

  static VF_DEVICE C element(const Stream& stream, const char* row, int at) {
    C v[1];
    load_any<1>(row, stream.dtype, static_cast<int64_t>(at) * stream.inner_stride, 1, 0, 1, v);
    return v[0];
  }
  VF_DEVICE C logit(int k) const { return element(args.logits, logits, k); }
  VF_DEVICE C log_weight(int k) const { return logit(k) - log_weight_shift - log_weight_total; }

  VF_DEVICE int run_start(int run) const { return (run * shape.of_dims + of_dims) * kMdnRun; }
  VF_DEVICE int run_length(int run) const {
    const int left = dims - run_start(run);
    return left < 0 ? 0 : left < kMdnRun ? left : kMdnRun;
  }
  static VF_DEVICE void load_run(const Stream& stream, const char* row, int64_t at, int count, C (&v)[kMdnRun]) {
    load_any<kMdnRun>(row, stream.dtype, at * stream.inner_stride, stream.inner_stride, 0, count, v);
  }

  /// Calls f(e, element) for the dimensions of a run.
  template <typename F>
  VF_DEVICE void elements(int k, int run, F&& f) const {
    const int first = run_start(run), count = k < components ? run_length(run) : 0;
    const int64_t at = static_cast<int64_t>(k) * dims + first;
    C ys[kMdnRun], ms[kMdnRun], ss[kMdnRun];
    load_run(args.y, y, first, count, ys);
    load_run(args.means, means, at, count, ms);
    if (args.shared_scale) {
      const C shared = count > 0 ? element(args.scale, scale, k) : C(0);
#pragma unroll
      for (int e = 0; e < kMdnRun; ++e) ss[e] = shared;
    } else {
      load_run(args.scale, scale, at, count, ss);
    }
#pragma unroll
    for (int e = 0; e < kMdnRun; ++e) {
      if (e < count) f(e, math::MdnElement<C>(ys[e], ms[e], ss[e], floor));
    }
  }

  /// l = log w + log N, but for (dims / 2) log 2 pi, from the sum of this lane's energies.
  VF_DEVICE C joint(int k, C energy) const {
    energy = sum_lanes(energy, 1, shape.of_dims);
    return k < components ? log_weight(k) - energy : -math::infinity<C>();
  }
};

template <typename C>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 2 : 3)
    mdn_kernel(const __grid_constant__ MdnArgs args, const __grid_constant__ MdnShape shape) {
  const int lanes = shape.of_dims * shape.of_components, thread = static_cast<int>(threadIdx.x), per_block = kThreads / lanes;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * per_block;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * per_block; first < args.rows; first += stride) {
    const int64_t n = first + thread / lanes;
    const MdnRow<C> row(args, shape, n < args.rows ? n : 0);
    RunningSum<C> sum = RunningSum<C>::zero();
    for (int k0 = 0; k0 < row.components; k0 += shape.of_components) {
      const int k = k0 + row.component;
      C energy = C(0);
      for (int run = 0; run < shape.runs; ++run) {
        row.elements(k, run, [&](int, const math::MdnElement<C>& e) { energy += e.energy; });
      }
      sum.add(row.joint(k, energy));
    }
    sum = merge_lanes(sum, shape.of_dims, lanes);
    if (thread % lanes == 0 && n < args.rows) {
      const double log_2pi = 1.8378770664093454836, constant = -0.5 * static_cast<double>(args.dims) * log_2pi;
      const double log_sum = static_cast<double>(sum.shift) + static_cast<double>(math::log(sum.total));
      static_cast<C*>(args.log_prob)[n] = static_cast<C>(constant + log_sum);
    }
  }
}

/// kOnce: a lane has one run of one component, which it keeps in registers. Otherwise a warp goes through its row twice, and the second
/// time finds it in the caches.
template <typename C, bool kOnce>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 && !kOnce ? 1 : 2)
    mdn_backward_kernel(const __grid_constant__ MdnBackwardArgs args, const __grid_constant__ MdnShape shape) {
  __shared__ C cached[kWarps][2][kOnce ? 1 : kMdnCached<C>];
  const MdnArgs& f = args.forward;
  const int lanes = shape.of_dims * shape.of_components, thread = static_cast<int>(threadIdx.x), per_block = kThreads / lanes;
  C(&cache)[2][kOnce ? 1 : kMdnCached<C>] = cached[thread / kWarp];
  const bool fits = kOnce || f.components <= kMdnCached<C>;
  const bool floors = args.grad_scale.data != nullptr && f.shared_scale;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * per_block;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * per_block; first < f.rows; first += stride) {
    const int64_t n = first + thread / lanes;
    const bool used = n < f.rows;
    const MdnRow<C> row(f, shape, used ? n : 0);
    C d_mean[kMdnRun], d_scale[kMdnRun];
#pragma unroll
    for (int e = 0; e < kMdnRun; ++e) d_mean[e] = d_scale[e] = C(0);

    // l of a component, and the sum of its derivatives in one scale for all dimensions
    const auto evaluate = [&](int k, C& l, C& in_scale) {
      C energy = C(0), sum = C(0);
      for (int run = 0; run < (kOnce ? 1 : shape.runs); ++run) {
        row.elements(k, run, [&](int e, const math::MdnElement<C>& element) {
          energy += element.energy, sum += element.d_scale;
          if constexpr (kOnce) d_mean[e] = element.d_mean, d_scale[e] = element.d_scale;
        });
      }
      l = row.joint(k, energy);
      in_scale = floors ? sum_lanes(sum, 1, shape.of_dims) : C(0);
    };
    RunningSum<C> sum = RunningSum<C>::zero();
    C l = C(0), in_scale = C(0);
    for (int k0 = 0; k0 < row.components; k0 += shape.of_components) {
      evaluate(k0 + row.component, l, in_scale);
      sum.add(l);
      if constexpr (!kOnce) {
        // every lane of a component writes the same, and reads what it wrote
        if (fits && k0 + row.component < row.components) cache[0][k0 + row.component] = l, cache[1][k0 + row.component] = in_scale;
      }
    }
    sum = merge_lanes(sum, shape.of_dims, lanes);
    if (sum.total != sum.total) sum.shift = sum.total;
    const C grad = static_cast<C>(args.grad.constant) *
                   (args.grad.data == nullptr || !used ? C(1) : static_cast<const C*>(args.grad.data)[n * args.grad.stride]);
    const C share = math::mixture_share(grad, sum.shift, sum.total), shift = math::mixture_shift(sum.shift);
    const C of_weights = sum.shift == -math::infinity<C>() ? C(0) : grad;

    for (int run = 0; run < (kOnce ? 1 : shape.runs); ++run) {
      const int d = row.run_start(run), length = row.run_length(run);
      C grad_y[kMdnRun];
#pragma unroll
      for (int e = 0; e < kMdnRun; ++e) grad_y[e] = C(0);
      for (int k0 = 0; k0 < row.components; k0 += shape.of_components) {
        const int k = k0 + row.component;
        const bool inside = used && k < row.components;
        if constexpr (!kOnce) {
          if (!fits) {
            evaluate(k, l, in_scale);
          } else if (k < row.components) {
            l = cache[0][k], in_scale = cache[1][k];
          }
        }
        const C q = k < row.components ? share * math::exp(l - shift) : C(0);
        if constexpr (!kOnce) {
          row.elements(k, run,
                       [&](int e, const math::MdnElement<C>& element) { d_mean[e] = element.d_mean, d_scale[e] = element.d_scale; });
        }
        if (inside && row.of_dims == 0 && run == 0) {
          C one[1];
          if (args.grad_logits.data != nullptr) {
            one[0] = q - weighed(of_weights, math::exp(row.log_weight(k)));
            store_any<1>(row_start(args.grad_logits, n), args.grad_logits.dtype, k, 1, 0, 1, one);
          }
          if (floors) {
            one[0] = weighed(q, in_scale);
            store_any<1>(row_start(args.grad_scale, n), args.grad_scale.dtype, k, 1, 0, 1, one);
          }
        }
        if (!inside || length == 0) continue;
        const int64_t at = static_cast<int64_t>(k) * row.dims + d;
#pragma unroll
        for (int e = 0; e < kMdnRun; ++e) {
          d_mean[e] = weighed(q, d_mean[e]), d_scale[e] = weighed(q, d_scale[e]);
          grad_y[e] -= d_mean[e];
        }
        if (args.grad_means.data != nullptr) {
          store_any<kMdnRun>(row_start(args.grad_means, n), args.grad_means.dtype, at, 1, 0, length, d_mean);
        }
        if (args.grad_scale.data != nullptr && !f.shared_scale) {
          store_any<kMdnRun>(row_start(args.grad_scale, n), args.grad_scale.dtype, at, 1, 0, length, d_scale);
        }
      }
      if (args.grad_y.data == nullptr) continue;
#pragma unroll
      for (int e = 0; e < kMdnRun; ++e) grad_y[e] = sum_lanes(grad_y[e], shape.of_dims, lanes);
      if (used && row.component == 0 && length > 0) {
        store_any<kMdnRun>(row_start(args.grad_y, n), args.grad_y.dtype, d, 1, 0, length, grad_y);
      }
    }
  }
}

}  // namespace cuda
}  // namespace vae_fast

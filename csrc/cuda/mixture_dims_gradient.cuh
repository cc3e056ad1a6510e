// What a row has of a mixture's gradient dimension by dimension: that of x, and that of the logits of the row's own weights.
#pragma once

#include "mixture_dims.cuh"
#include "mixture_gradient_diagonal.cuh"

namespace vae_fast {
namespace cuda {

template <typename C, bool kWeighted, bool kJoint>
struct DimsGradientShared {
  static constexpr int kOfRows = (kWeighted ? 1 : 0) + (kJoint ? 1 : 0), kLogWeight = 0, kWeight = kWeighted ? 1 : 0;
  DimsStage<C, kOfRows> stage;
  DimsExchange<C> exchange;
  int32_t far;  // the last tile of dimensions with a shift, or with an element of x so large that u may be out of range
};

/// Sums v over the threads side by side, a power of two from 4 on: of the row `kept`, in each of the first four.
template <typename C>
VF_DEVICE C sum_side_by_side(const C (&v)[kDimRows], int side, int width, int& kept) {
  const bool high = (side & 1) != 0, odd = (side & 2) != 0;
  C a = high ? v[2] : v[0], b = high ? v[3] : v[1];
  a += __shfl_xor_sync(kFullMask, high ? v[0] : v[2], 1u);
  b += __shfl_xor_sync(kFullMask, high ? v[1] : v[3], 1u);
  C sum = (odd ? b : a) + __shfl_xor_sync(kFullMask, odd ? a : b, 2u);
  for (int bit = 4; bit < width; bit *= 2) sum += __shfl_xor_sync(kFullMask, sum, static_cast<unsigned>(bit));
  kept = (high ? 2 : 0) + (odd ? 1 : 0);
  return sum;
}

/// grad_x (unless its data is null), kJoint with the responsibilities that are given added to each dimension's, and, kWeighted, what
/// counts_k sums over rows, to grad_row_logits.
template <typename C, bool kWeighted, bool kJoint>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 1
                                            : kWeighted    ? 2
                                                           : 3)
    mixture_dims_gradient_kernel(const __grid_constant__ MixtureBackwardArgs args, const __grid_constant__ GradientRows given,
                                 const __grid_constant__ DimsShape shape) {
  using Shared = DimsGradientShared<C, kWeighted, kJoint>;
  __shared__ Shared shared;
  auto& stage = shared.stage;
  const MixtureArgs& m = args.mixture;
  const int thread = static_cast<int>(threadIdx.x), dims = static_cast<int>(m.dims), components = static_cast<int>(m.components);
  const DimsPlace place(shape);
  const C* const shifts = static_cast<const C*>(args.dim_normaliser);
  const C* const totals = shifts + m.rows * m.dims;
  const int64_t end = given.first_row + given.rows;
  for (int64_t tile = blockIdx.x; tile * shape.rows() < given.rows; tile += gridDim.x) {
    const int64_t first = given.first_row + tile * shape.rows(), mine = first + place.up * kDimRows;
    if (thread == 0) shared.far = -1;
    for (int d_tile = 0; d_tile < shape.dim_tiles; ++d_tile) {
      const int d_first = d_tile * shape.dims(), d = d_first + place.side * kDimPair;
      if (thread == 0) stage.far = -1;
      __syncthreads();
      C x[kDimRows][kDimPair], coefficient[kDimRows][kDimPair] = {}, grad[kDimRows][kDimPair] = {};
      load_elements(m, mine, place.used ? end : 0, d, x);
      const auto element = [&](int i, int j) { return place.used && mine + i < end && d + j < dims; };
      const auto shift_at = [&](int i, int j) { return element(i, j) ? shifts[(mine + i) * dims + d + j] : C(0); };
      bool far = false;
#pragma unroll
      for (int i = 0; i < kDimRows; ++i) {
        const C upstream = place.used && mine + i < end ? upstream_of<C>(args.factorized_grad, mine + i) : C(0);
#pragma unroll
        for (int j = 0; j < kDimPair; ++j) {
          const C shift = shift_at(i, j);
          if (element(i, j)) coefficient[i][j] = math::mixture_share(upstream, shift, totals[(mine + i) * dims + d + j]);
          far = far || !(shift == C(0) && math::abs(x[i][j]) <= stage.moderate());
        }
      }
      if (far) shared.far = d_tile;
      for (int k = 0; k < components; k += shape.components) {
        const int count = components - k < shape.components ? components - k : shape.components;
        stage.bring(m, shape, k, count, d_first, false);
        if constexpr (kWeighted)
          stage.bring_rows(Shared::kLogWeight, static_cast<const C*>(m.row_weights), shape, components, first, end, k, count);
        if constexpr (kJoint) {
          stage.bring_rows(Shared::kWeight, static_cast<const C*>(given.weights), shape, components, first - given.first_row, given.rows, k,
                           count);
        }
        __syncthreads();
        const auto over = [&](auto careful) {
          constexpr bool kCareful = decltype(careful)::value;
          C shift[kDimRows][kDimPair];
#pragma unroll
          for (int i = 0; kCareful && i < kDimRows; ++i) {
#pragma unroll
            for (int j = 0; j < kDimPair; ++j) shift[i][j] = math::mixture_shift(shift_at(i, j));
          }
          const auto add = [&](int c, bool own) {
            const DimTerms<C> terms(stage, c * shape.dims() + place.side * kDimPair);
            const int at = c * shape.row_stride() + place.up * kDimRows;
            C w[kDimRows] = {}, q[kDimRows] = {}, counts[kDimRows] = {};
            if constexpr (kWeighted) take(&stage.of_rows[Shared::kLogWeight][at], w);
            if constexpr (kJoint) take(&stage.of_rows[Shared::kWeight][at], q);
#pragma unroll
            for (int i = 0; i < kDimRows; ++i) {
#pragma unroll
              for (int j = 0; j < kDimPair; ++j) {
                C u = math::standardise(x[i][j], terms.mean[j], terms.inverse[j]);
                C exponent = math::mixture_dim_exponent<kWeighted>(terms.constant[j], u * u, w[i]);
                if (kCareful) exponent -= shift[i][j];
                const C e = coefficient[i][j] * math::exp2_below(exponent);
                if (kCareful) u = math::held_within(u, math::largest<C>());
                if (kWeighted) counts[i] += e;
                const C moment = (kJoint ? q[i] + e : e) * u;
                if (!kWeighted || own) grad[i][j] = math::fma(moment, terms.inverse[j], grad[i][j]);
              }
            }
            if constexpr (kWeighted) {
              int row;
              const C sum = sum_side_by_side(counts, place.side, shape.width, row);
              // in the place of the log weight, which the threads side by side have all read
              if (own && place.side < 4) stage.of_rows[Shared::kLogWeight][at + row] = sum;
            }
          };
          if constexpr (kWeighted) {  // as often in every thread, and every one is used: they exchange
#pragma unroll(kCareful ? 1 : 2)
            for (int c = 0; c < count; c += shape.splits) {
              const bool own = c + place.split < count;
              add(own ? c + place.split : count - 1, own);
            }
          } else if (place.used) {
#pragma unroll(kCareful ? 1 : 2)
            for (int c = place.split; c < count; c += shape.splits) add(c, true);
          }
        };
        if (stage.far == k || shared.far == d_tile) {
          over(std::true_type());
        } else {
          over(std::false_type());
        }
        __syncthreads();
        if constexpr (kWeighted) {
          C* const to = static_cast<C*>(args.grad_row_logits);
          if (to != nullptr) {
            stage.each(shape, count, [&](int c, int r) {
              if (first + r >= end) return;
              const int at = c * shape.row_stride() + r;
              C& sum = to[(first + r) * m.components + k + c];
              const C joint = kJoint ? stage.of_rows[Shared::kWeight][at] : C(0);
              sum = (d_tile == 0 ? joint : sum) + stage.of_rows[Shared::kLogWeight][at];
            });
          }
          __syncthreads();
        }
      }
      shared.exchange.sum(grad, shape);
      if (args.grad_x.data != nullptr && place.used && place.split == 0) {
#pragma unroll
        for (int i = 0; i < kDimRows; ++i) {
#pragma unroll
          for (int j = 0; j < kDimPair; ++j) grad[i][j] *= C(1) / math::mixture_dim_one<C>();
          if (mine + i < end) store_gradient(m, args.grad_x, mine + i, d, grad[i]);
        }
      }
    }
  }
}

template <typename C>
cudaError_t launch_mixture_dims_gradient(const MixtureBackwardArgs& args, const GradientRows& given, cudaStream_t stream) {
  using Stage = DimsStage<C, 1>;
  const MixtureArgs& m = args.mixture;
  const bool weighted = m.row_weights != nullptr, joint = given.weights != nullptr;
  const DimsShape shape(m, given.rows, weighted, Stage::kParameters, weighted || joint ? Stage::kWeights : 0);
  const unsigned grid = capped_grid(ceil_div(given.rows, int64_t{shape.up} * kDimRows));
  const auto start = [&](auto by_row, auto with_joint) {
    VF_START((mixture_dims_gradient_kernel<C, decltype(by_row)::value, decltype(with_joint)::value>), grid, kThreads, stream, args, given,
             shape);
    return cudaGetLastError();
  };
  using Yes = std::true_type;
  using No = std::false_type;
  if (weighted) return joint ? start(Yes(), Yes()) : start(Yes(), No());
  return joint ? start(No(), Yes()) : start(No(), No());
}

/// A warp per row: what counts_k sums over rows becomes the gradient of the logits of the row's weights.
template <typename C>
__global__ void __launch_bounds__(kThreads)
    mixture_row_logits_kernel(const C* log_weights, C* grad, const int64_t rows, const int64_t components) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp; row < rows; row += static_cast<int64_t>(gridDim.x) * kWarps) {
    const C* const w = log_weights + row * components;
    C* const g = grad + row * components;
    double all = 0.0;
    for (int64_t k = lane; k < components; k += kWarp) all += static_cast<double>(g[k]);
    for (int offset = kWarp / 2; offset > 0; offset /= 2) all += __shfl_xor_sync(kFullMask, all, static_cast<unsigned>(offset));
    for (int64_t k = lane; k < components; k += kWarp)
      g[k] = static_cast<C>(math::mixture_logit_gradient(static_cast<double>(g[k]), static_cast<double>(w[k]), all));
  }
}

template <typename C>
cudaError_t launch_mixture_row_logits(const MixtureBackwardArgs& args, cudaStream_t stream) {
  const MixtureArgs& m = args.mixture;
  VF_START(mixture_row_logits_kernel<C>, capped_grid(ceil_div(m.rows, kWarps)), kThreads, stream, static_cast<const C*>(m.row_weights),
           static_cast<C*>(args.grad_row_logits), m.rows, m.components);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace vae_fast

// Mixtures dimension by dimension: rows x dimensions in registers, the components' parameters in shared memory a few at a time, each term
// one power of 2. The threads of a block lie side by side over the dimensions, then over the rows, and what is left of them share the
// components.
#pragma once

#include "../math/logsumexp.h"
#include "mixture_plan.h"
#include "mixture_tile.cuh"

namespace vae_fast {
namespace cuda {

constexpr int kDimRows = 4, kDimPair = 2;  // of a thread

/// How a block's threads lie. Any number may be side by side; with `powers_of_two` of theirs, at least 4, they are in one warp.
struct DimsShape {
  static constexpr int kMostWidth = 32, kMostUp = 64, kMostComponents = 64;

  int32_t width = 1, up = 1, splits = 1;
  int32_t dim_tiles = 1;
  int32_t components = 1;  // in shared memory at once

  VF_DEVICE int dims() const { return width * kDimPair; }
  VF_DEVICE int rows() const { return up * kDimRows; }
  VF_DEVICE int row_stride() const { return rows() + 4; }  // of what lies [component][row]: writers side by side meet different banks

  DimsShape(const MixtureArgs& m, int64_t of_rows, bool powers_of_two, int parameters, int weights) {
    dim_tiles = static_cast<int32_t>(ceil_div(m.dims, kMostWidth * kDimPair));
    width = static_cast<int32_t>(ceil_div(ceil_div(m.dims, dim_tiles), kDimPair));
    if (powers_of_two) {
      int32_t p = 4;
      while (p < width) p *= 2;
      width = p;
    }
    up = kThreads / width < kMostUp ? kThreads / width : kMostUp;
    // Few rows are spread over the device, and the components over the threads that this leaves.
    while (up > 1 && ceil_div(of_rows, up * kDimRows) < 2 * processors() && m.components >= 8 * (kThreads / (width * up))) up /= 2;
    splits = kThreads / (width * up);
    const int32_t of_parameters = parameters / kThreads * (kThreads / (width * kDimPair)), of_weights = weights / (up * kDimRows + 4);
    components = of_parameters < of_weights || weights == 0 ? of_parameters : of_weights;
    if (components > kMostComponents) components = kMostComponents;
    if (components > m.components) components = static_cast<int32_t>(m.components);
  }
};

/// Where a thread is in its block.
struct DimsPlace {
  int side, up, split;
  bool used;
  VF_DEVICE explicit DimsPlace(const DimsShape& s) {
    const int thread = static_cast<int>(threadIdx.x);
    side = thread % s.width;
    up = thread / s.width % s.up;
    split = thread / (s.width * s.up);
    used = split < s.splits;
  }
};

/// A few components in shared memory: their parameters [component][dimension], and what rows have of them [component][row].
template <typename C, int kOfRows>
struct DimsStage {
  static constexpr int kParameters = 4096 / static_cast<int>(sizeof(C)), kWeights = 9216 / static_cast<int>(sizeof(C));
  static constexpr int kFetched = kParameters / kThreads;  // of a thread
  alignas(16) C mean[kParameters];
  alignas(16) C inverse[kParameters];  // 1 / sigma in mixture_dim_unit
  alignas(16) C constant[kParameters];
  alignas(16) C of_rows[kOfRows > 0 ? kOfRows : 1][kOfRows > 0 ? kWeights : 4];
  int32_t far;  // the last components of which a mean or an inverse is so large that u may be out of range

  /// Brings components [k, k + count). Beyond the last dimension every term is 0. `open`: what is above the dimension's baseline gives no
  /// number, so that no sum without a shift comes out in range.
  VF_DEVICE void bring(const MixtureArgs& m, const DimsShape& shape, int k, int count, int d_first, bool open) {
    const int thread = static_cast<int>(threadIdx.x), tile = shape.dims(), dim = thread % tile, step = kThreads / tile;
    const int dims = static_cast<int>(m.dims);
    if (thread >= step * tile) return;
    const bool inside = d_first + dim < dims;
    C mine[kFetched], by[kFetched], own[kFetched];
#pragma unroll
    for (int e = 0; e < kFetched; ++e) {
      const int c = thread / tile + e * step;
      const int64_t from = static_cast<int64_t>(k + c) * dims + d_first + dim;
      const bool used = inside && c < count;
      mine[e] = used ? static_cast<const C*>(m.means)[from] : C(0);
      by[e] = used ? static_cast<const C*>(m.scale)[from] : C(0);
      own[e] = used ? static_cast<const C*>(m.dim_constant)[from] : -math::infinity<C>();
    }
#pragma unroll
    for (int e = 0; e < kFetched; ++e) {
      const int c = thread / tile + e * step, at = c * tile + dim;
      if (c >= count) continue;
      mean[at] = math::bounded(mine[e]), inverse[at] = by[e] * math::mixture_dim_unit<C>();
      constant[at] = open && own[e] > C(0) ? math::infinity<C>() : own[e];
      if (!(math::abs(mine[e]) <= moderate() && by[e] <= moderate())) far = k;
    }
  }
  /// Brings what rows [first, rows) have of these components, `from` a matrix of all rows and components.
  VF_DEVICE void bring_rows(int which, const C* from, const DimsShape& shape, int64_t components, int64_t first, int64_t rows, int k,
                            int count) {
    each(shape, count, [&](int c, int r) {
      of_rows[which][c * shape.row_stride() + r] = first + r < rows ? from[(first + r) * components + k + c] : C(0);
    });
  }
  /// Calls f(component, row) for all that there are, neighbouring threads with neighbouring components.
  template <typename F>
  static VF_DEVICE void each(const DimsShape& shape, int count, F&& f) {
    const int thread = static_cast<int>(threadIdx.x), step = kThreads / shape.components, c = thread % shape.components;
    if (thread >= step * shape.components || c >= count) return;
    for (int r = thread / shape.components; r < shape.rows(); r += step) f(c, r);
  }
  /// Beyond these u may overflow.
  static VF_DEVICE C moderate() { return sizeof(C) == 8 ? static_cast<C>(1e150) : static_cast<C>(1e15); }
};

/// One component in a thread's dimensions.
template <typename C>
struct DimTerms {
  C mean[kDimPair], inverse[kDimPair], constant[kDimPair];

  template <typename Stage>
  VF_DEVICE DimTerms(const Stage& stage, int at) {
    take(&stage.mean[at], mean);
    take(&stage.inverse[at], inverse);
    take(&stage.constant[at], constant);
  }
};

/// A thread's elements of x as they are read, 0 beyond the last.
template <typename C>
VF_DEVICE void load_elements(const MixtureArgs& m, int64_t first, int64_t rows, int d, C (&x)[kDimRows][kDimPair]) {
#pragma unroll
  for (int i = 0; i < kDimRows; ++i) {
    load_run(m.x, first + i < rows ? row_start(m.x, first + i) : nullptr, d, static_cast<int>(m.dims), x[i]);
#pragma unroll
    for (int j = 0; j < kDimPair; ++j) x[i][j] = math::bounded(x[i][j]);
  }
}

/// A thread's values for each of its elements, exchanged with those that share the components.
template <typename C>
struct DimsExchange {
  static constexpr int kElements = kDimRows * kDimPair;
  C value[kElements][kThreads];

  /// v of all splits combined, in all of them.
  template <typename Combine>
  VF_DEVICE void combine(C (&v)[kDimRows][kDimPair], const DimsShape& shape, Combine&& with) {
    if (shape.splits == 1) return;
    const int thread = static_cast<int>(threadIdx.x), group = shape.width * shape.up;
    __syncthreads();
#pragma unroll
    for (int e = 0; e < kElements; ++e) value[e][thread] = v[e / kDimPair][e % kDimPair];
    __syncthreads();
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      C all = value[e][thread % group];
#pragma unroll 1
      for (int s = 1; s < shape.splits; ++s) all = with(all, value[e][thread % group + s * group]);
      v[e / kDimPair][e % kDimPair] = all;
    }
    __syncthreads();
  }
  VF_DEVICE void sum(C (&v)[kDimRows][kDimPair], const DimsShape& shape) {
    combine(v, shape, [](C a, C b) { return a + b; });
  }
};

template <typename C, bool kWeighted>
struct DimsForwardShared {
  DimsStage<C, kWeighted ? 1 : 0> stage;
  union {
    DimsExchange<C> exchange;
    double logs[kThreads * kDimRows];  // [row][side]
  };
  int32_t far;  // the last tile of dimensions of which a sum is out of range without a shift
};

/// Calls add(terms, weights) for this thread's share of all components, in order, and after_stage() now and then.
template <typename C, bool kWeighted, typename Add, typename AfterStage>
VF_DEVICE void over_components(const MixtureArgs& m, const DimsShape& shape, const DimsPlace& place, DimsStage<C, kWeighted ? 1 : 0>& stage,
                               int64_t first, int d_first, bool open, Add&& add, AfterStage&& after_stage) {
  const int components = static_cast<int>(m.components);
  for (int k = 0; k < components; k += shape.components) {
    const int count = components - k < shape.components ? components - k : shape.components;
    stage.bring(m, shape, k, count, d_first, open);
    if constexpr (kWeighted) stage.bring_rows(0, static_cast<const C*>(m.row_weights), shape, components, first, m.rows, k, count);
    __syncthreads();
    if (place.used) {
#pragma unroll 2
      for (int c = place.split; c < count; c += shape.splits) {
        const DimTerms<C> terms(stage, c * shape.dims() + place.side * kDimPair);
        C w[kDimRows] = {};
        if constexpr (kWeighted) take(&stage.of_rows[0][c * shape.row_stride() + place.up * kDimRows], w);
        add(terms, w);
      }
      after_stage();
    }
    __syncthreads();
  }
}

/// sum_d log sum_k 2^{l_kd} of every row: sums of the terms as they are where those are in range, else relative to the largest.
template <typename C, bool kWeighted>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 1 : 3)
    mixture_dims_kernel(const __grid_constant__ MixtureForwardArgs args, const __grid_constant__ DimsShape shape) {
  __shared__ DimsForwardShared<C, kWeighted> shared;
  const MixtureArgs& m = args.mixture;
  const int thread = static_cast<int>(threadIdx.x), dims = static_cast<int>(m.dims);
  const DimsPlace place(shape);
  C* const shifts = static_cast<C*>(args.dim_normaliser);
  C* const totals = shifts + m.rows * m.dims;
  for (int64_t tile = blockIdx.x; tile * shape.rows() < m.rows; tile += gridDim.x) {
    const int64_t first = tile * shape.rows(), mine = first + place.up * kDimRows;
    double of_row = *m.dim_baseline;  // of row `thread`
    if (thread == 0) shared.far = -1;
    for (int d_tile = 0; d_tile < shape.dim_tiles; ++d_tile) {
      const int d_first = d_tile * shape.dims(), d = d_first + place.side * kDimPair;
      C x[kDimRows][kDimPair], total[kDimRows][kDimPair] = {}, part[kDimRows][kDimPair] = {};
      load_elements(m, mine, place.used ? m.rows : 0, d, x);
      over_components<C, kWeighted>(
          m, shape, place, shared.stage, first, d_first, true,
          [&](const DimTerms<C>& terms, const C(&w)[kDimRows]) {
#pragma unroll
            for (int i = 0; i < kDimRows; ++i) {
#pragma unroll
              for (int j = 0; j < kDimPair; ++j) {
                const C u = math::standardise(x[i][j], terms.mean[j], terms.inverse[j]);
                part[i][j] += math::exp2_below(math::mixture_dim_exponent<kWeighted>(terms.constant[j], u * u, w[i]));
              }
            }
          },
          [&] {
#pragma unroll
            for (int i = 0; i < kDimRows; ++i) {
#pragma unroll
              for (int j = 0; j < kDimPair; ++j) total[i][j] += part[i][j], part[i][j] = C(0);
            }
          });
      shared.exchange.sum(total, shape);
      const auto counts = [&](int i, int j) { return place.used && mine + i < m.rows && d + j < dims; };
      bool far = false;
#pragma unroll
      for (int i = 0; i < kDimRows; ++i) {
#pragma unroll
        for (int j = 0; j < kDimPair; ++j) far = far || (counts(i, j) && !math::mixture_dim_in_range(total[i][j], sizeof(C) == 8));
      }
      if (far) shared.far = d_tile;
      __syncthreads();
      C shift[kDimRows][kDimPair] = {};
      if (shared.far == d_tile) {  // an element far from every component, or no number
        C top[kDimRows][kDimPair], sum[kDimRows][kDimPair] = {};
#pragma unroll
        for (int i = 0; i < kDimRows; ++i) {
#pragma unroll
          for (int j = 0; j < kDimPair; ++j) top[i][j] = -math::infinity<C>();
        }
        over_components<C, kWeighted>(
            m, shape, place, shared.stage, first, d_first, false,
            [&](const DimTerms<C>& terms, const C(&w)[kDimRows]) {
#pragma unroll
              for (int i = 0; i < kDimRows; ++i) {
#pragma unroll
                for (int j = 0; j < kDimPair; ++j) {
                  const C u = math::standardise(x[i][j], terms.mean[j], terms.inverse[j]);
                  const C l = math::mixture_dim_exponent<kWeighted>(terms.constant[j], u * u, w[i]);
                  const C above = l > top[i][j] ? l : top[i][j], to = math::shift_of(above);
                  sum[i][j] = sum[i][j] * math::exp2_below(top[i][j] - to) + math::exp2_below(l - to);
                  top[i][j] = above;
                }
              }
            },
            [] {});
        C largest[kDimRows][kDimPair];
#pragma unroll
        for (int i = 0; i < kDimRows; ++i) {
#pragma unroll
          for (int j = 0; j < kDimPair; ++j) largest[i][j] = top[i][j];
        }
        shared.exchange.combine(largest, shape, [](C a, C b) { return b > a ? b : a; });
#pragma unroll
        for (int i = 0; i < kDimRows; ++i) {
#pragma unroll
          for (int j = 0; j < kDimPair; ++j) sum[i][j] *= math::exp2_below(top[i][j] - math::shift_of(largest[i][j]));
        }
        shared.exchange.sum(sum, shape);
#pragma unroll
        for (int i = 0; i < kDimRows; ++i) {
#pragma unroll
          for (int j = 0; j < kDimPair; ++j) {
            if (math::mixture_dim_in_range(total[i][j], sizeof(C) == 8)) continue;
            shift[i][j] = largest[i][j], total[i][j] = sum[i][j];
          }
        }
      }
      __syncthreads();
      if (place.used && place.split == 0) {
#pragma unroll
        for (int i = 0; i < kDimRows; ++i) {
          double logs = 0.0;
#pragma unroll
          for (int j = 0; j < kDimPair; ++j) {
            if (!counts(i, j)) continue;
            const int64_t at = (mine + i) * dims + d + j;
            shifts[at] = shift[i][j], totals[at] = total[i][j];
            logs += math::mixture_dim_log(shift[i][j], total[i][j]);
          }
          shared.logs[(place.up * kDimRows + i) * shape.width + place.side] = logs;
        }
      }
      __syncthreads();
      if (thread < shape.rows()) {
        for (int s = 0; s < shape.width; ++s) of_row += shared.logs[thread * shape.width + s];
      }
      __syncthreads();
    }
    if (thread < shape.rows() && first + thread < m.rows) static_cast<C*>(args.factorized)[first + thread] = static_cast<C>(of_row);
  }
}

template <typename C>
cudaError_t launch_mixture_dims(const MixtureForwardArgs& args, cudaStream_t stream) {
  using Stage = DimsStage<C, 1>;
  const MixtureArgs& m = args.mixture;
  const bool weighted = m.row_weights != nullptr;
  const DimsShape shape(m, m.rows, false, Stage::kParameters, weighted ? Stage::kWeights : 0);
  const unsigned grid = capped_grid(ceil_div(m.rows, int64_t{shape.up} * kDimRows));
  if (weighted) {
    VF_START((mixture_dims_kernel<C, true>), grid, kThreads, stream, args, shape);
  } else {
    VF_START((mixture_dims_kernel<C, false>), grid, kThreads, stream, args, shape);
  }
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace vae_fast

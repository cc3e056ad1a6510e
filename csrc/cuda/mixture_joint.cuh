// e = -sum_d (u_d^2 - 1) / 2 of a tile of rows, components a few at a time: but for a constant, log w_k + log N(x; mean_k, .).
#pragma once

#include "mixture_tile.cuh"

namespace vae_fast {
namespace cuda {

/// The constants of N components from k on.
template <typename C, int N>
struct Constants {
  C high[N], low[N];

  VF_DEVICE Constants(const MixtureArgs& args, int k) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const bool used = k + j < args.components;
      high[j] = used ? static_cast<const C*>(args.constant)[k + j] : -math::infinity<C>();
      low[j] = used && args.constant_low != nullptr ? static_cast<const C*>(args.constant_low)[k + j] : C(0);
    }
  }
  /// l_j - shift of the component whose -sum (u^2 - 1) / 2 is e. Of a rounded row, which the CPU's loops take apart, it may have lost its
  /// sense: the registers of the tensor cores' kernel do not hold both forms.
  VF_DEVICE C exponent(int j, C e, C shift) const { return math::mixture_exponent(high[j], low[j], e, shift); }
};

/// sum_d (u_d^2 - 1) of a thread's rows and components: a few dimensions at a time, from minus their number on, which are then added up.
template <typename C, int kRows, int kOfThread>
struct SquareSums {
  C part[kRows][kOfThread];
  C sum[kRows][kOfThread];

  VF_DEVICE SquareSums() { fill(sum, C(0)); }
  VF_DEVICE void begin(int dims) { fill(part, static_cast<C>(-dims)); }
  VF_DEVICE void add_part() {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kOfThread; ++j) sum[i][j] += part[i][j];
    }
  }
  /// -sum / 2 in `part`, and the next components from 0 on.
  VF_DEVICE void finish() {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kOfThread; ++j) part[i][j] = C(-0.5) * sum[i][j], sum[i][j] = C(0);
    }
  }

 private:
  static VF_DEVICE void fill(C (&v)[kRows][kOfThread], C with) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kOfThread; ++j) v[i][j] = with;
    }
  }
};

/// Diagonal: kOfThread components per thread. In both kinds, a thread's results are of rows row(i) and components
/// part() kPerThread + j; kParts threads share a row.
template <typename C, int kOfThread>
struct DiagonalJoint {
  using Tile = MixtureTile<C>;
  using Otherwise = DiagonalJoint;  // what to try where run returns false, which no joint does whose Otherwise is itself
  static constexpr int kRows = Tile::kRowsPerThread, kPerThread = kOfThread, kParts = kSide;
  static constexpr int kComponents = kSide * kOfThread, kStride = kComponents + Tile::kPad;
  static constexpr int kAll = kComponents * Tile::kSteps, kFetch = kAll < kThreads ? 1 : kAll / kThreads;

  static constexpr bool kNears = sizeof(C) == 4;

  struct Stage {
    alignas(16) C x[Tile::kSteps][Tile::kRowStride];
    alignas(16) C mean[Tile::kSteps][kStride];
    alignas(16) C scale[Tile::kSteps][kStride];
    alignas(16) C offset[kNears ? Tile::kSteps : 1][kStride];
    C centre[Tile::kSteps];
    int32_t far;  // the last tile of which a mean was far from the centre
  };
  struct Shared {
    Stage stage[2];
  };
  static VF_DEVICE int part() { return static_cast<int>(threadIdx.x) % kSide; }
  static VF_DEVICE int row(int i) { return opaque(static_cast<int>(threadIdx.x) / kSide) * kRows + i; }

  /// Calls finish(k, constants, e) for k = 0, kComponents, ...: e[i][j] is that of row first_row + row(i) and component
  /// k + part() kPerThread + j, whose constant is -infinity beyond the last. No thread may write to `shared` afterwards before a barrier.
  template <typename Finish>
  VF_DEVICE static bool run(const MixtureArgs& args, int64_t first_row, Shared& shared, Finish&& finish) {
    const int thread = static_cast<int>(threadIdx.x), tx = thread % kSide, ty = thread / kSide;
    const int components = static_cast<int>(args.components), dims = static_cast<int>(args.dims);
    const int fetched = thread / Tile::kLanes, x_step = thread % Tile::kLanes * Tile::kPerThread;
    const int of_step = Tile::kSteps / kFetch, component = thread / of_step, step = thread % of_step * kFetch;
    const char* const x_row = row_or_null(args, first_row + fetched);
    const C* const means = static_cast<const C*>(args.means);
    const C* const scales = static_cast<const C*>(args.scale);

    C x[Tile::kPerThread], mean[kFetch], scale[kFetch];
    const auto fetch = [&](int k, int d) {
      load_run(args.x, x_row, d + x_step, dims, x);
      const int64_t at = static_cast<int64_t>(k + component) * dims + d + step;
      const bool used = component < kComponents && k + component < components;
#pragma unroll
      for (int e = 0; e < kFetch; ++e) {
        const bool inside = used && d + step + e < dims;
        mean[e] = inside ? means[at + e] : C(0);
        scale[e] = inside ? scales[at + e] : C(0);
      }
    };
    const bool centred = kNears && args.centre != nullptr;
    const auto put = [&](Stage& s, int d, int number) {
#pragma unroll
      for (int e = 0; e < Tile::kPerThread; ++e) s.x[x_step + e][fetched] = read_x(args, x[e], d + x_step + e);
      if (centred && thread < Tile::kSteps) s.centre[thread] = d + thread < dims ? static_cast<C>(args.centre[d + thread]) : C(0);
      if (component < kComponents) {
#pragma unroll
        for (int e = 0; e < kFetch; ++e) {
          const C near = math::bounded(mean[e]);
          s.mean[step + e][component] = near;
          s.scale[step + e][component] = scale[e];
          if (!centred) continue;
          const C centre = d + step + e < dims ? static_cast<C>(args.centre[d + step + e]) : C(0), offset = (centre - near) * scale[e];
          s.offset[kNears ? step + e : 0][component] = offset;
          if (!(math::abs(offset) <= math::mixture_near<C>() && math::abs(centre) <= math::mixture_near_centre<C>())) s.far = number;
        }
      }
    };

    SquareSums<C, kRows, kOfThread> squares;
    int k = 0, d = 0, buffer = 0, number = 0;
    if (kNears) {
      if (thread < 2) shared.stage[thread].far = -1;
      __syncthreads();
    }
    fetch(0, 0);
    for (;; ++number) {
      const Stage& s = shared.stage[buffer];
      put(shared.stage[buffer], d, number);
      buffer ^= 1;
      __syncthreads();
      const bool last = d + Tile::kSteps >= dims;
      const int next_k = last ? k + kComponents : k, next_d = last ? 0 : d + Tile::kSteps;
      if (next_k < components) fetch(next_k, next_d);
      const int count = dims - d < Tile::kSteps ? dims - d : Tile::kSteps;
      squares.begin(count);
      if (centred && s.far != number) {
#pragma unroll 2
        for (int p = 0; p < count; ++p) {
          C xs[kRows], bs[kOfThread], rs[kOfThread];
          take(&s.x[p][ty * kRows], xs);
          take(&s.offset[kNears ? p : 0][tx * kOfThread], bs);
          take(&s.scale[p][tx * kOfThread], rs);
          const C centre = s.centre[p];
#pragma unroll
          for (int i = 0; i < kRows; ++i) {
            const C y = xs[i] - centre;
#pragma unroll
            for (int j = 0; j < kOfThread; ++j) {
              const C u = math::fma(y, rs[j], bs[j]);
              squares.part[i][j] = math::fma(u, u, squares.part[i][j]);
            }
          }
        }
      } else {
#pragma unroll(sizeof(C) == 8 ? 1 : 2)
        for (int p = 0; p < count; ++p) {
          C xs[kRows], ms[kOfThread], rs[kOfThread];
          take(&s.x[p][ty * kRows], xs);
          take(&s.mean[p][tx * kOfThread], ms);
          take(&s.scale[p][tx * kOfThread], rs);
#pragma unroll
          for (int i = 0; i < kRows; ++i) {
#pragma unroll
            for (int j = 0; j < kOfThread; ++j) {
              const C u = math::standardise(xs[i], ms[j], rs[j]);
              squares.part[i][j] = math::fma(u, u, squares.part[i][j]);
            }
          }
        }
      }
      squares.add_part();
      if (last) {
        squares.finish();
        finish(k, Constants<C, kOfThread>(args, k + tx * kOfThread), squares.part);
      }
      if (next_k >= components) break;
      k = next_k, d = next_d;
    }
    return true;
  }
};

/// Fetches t = x - mean_k of the thread's row.
template <typename C>
struct Difference {
  const MixtureArgs& args;
  const char* x_row;
  int k;

  VF_DEVICE void operator()(int d, C (&t)[MixtureTile<C>::kPerThread]) const {
    const int dims = static_cast<int>(args.dims);
    const C* const mean = static_cast<const C*>(args.means) + static_cast<int64_t>(k) * dims;
    load_run(args.x, x_row, d, dims, t);
#pragma unroll
    for (int e = 0; e < MixtureTile<C>::kPerThread; ++e)
      t[e] = d + e < dims ? read_x(args, t[e], d + e) - math::bounded(mean[d + e]) : C(0);
  }
};

/// Fetches element (row, column0 + column) of a dims x dims matrix, 0 beyond it.
template <typename C>
struct Factor {
  const C* matrix;
  int column0, dims;

  VF_DEVICE C operator()(int row, int column) const {
    const int c = column0 + column;
    return row < dims && c < dims ? matrix[static_cast<int64_t>(row) * dims + c] : C(0);
  }
};

/// Full: u = t times the factor, component by component, 64 columns at a time.
template <typename C>
struct FullJoint {
  using Tile = MixtureTile<C>;
  using Otherwise = FullJoint;
  static constexpr int kRows = 1, kParts = kThreads / Tile::kRows, kComponents = 16, kPerThread = kComponents / kParts;

  struct Shared {
    ProductStage<C> stage[2];
    C sum[kComponents][Tile::kRows + 1];
    int32_t nan_row[Tile::kRows], nan_factor;  // whether t was NaN in that row, or a factor: l of some component is then NaN in earnest
  };

  static VF_DEVICE int part() { return static_cast<int>(threadIdx.x) / Tile::kRows; }
  static VF_DEVICE int row(int) { return static_cast<int>(threadIdx.x) % Tile::kRows; }

  /// As DiagonalJoint::run.
  template <typename Finish>
  VF_DEVICE static bool run(const MixtureArgs& args, int64_t first_row, Shared& shared, Finish&& finish) {
    constexpr int kOfThread = Tile::kRowsPerThread, kColumns = ProductStage<C>::kColumns;
    const int thread = static_cast<int>(threadIdx.x), tx = thread % kSide, ty = thread / kSide;
    const int components = static_cast<int>(args.components), dims = static_cast<int>(args.dims);
    const int fetched = thread / Tile::kLanes;
    const char* const x_row = row_or_null(args, first_row + fetched);
    if (thread < Tile::kRows) shared.nan_row[thread] = 0;
    if (thread == 0) shared.nan_factor = 0;
    __syncthreads();
    int buffer = 0;
    for (int k0 = 0; k0 < components; k0 += kComponents) {
      for (int k = k0; k < k0 + kComponents && k < components; ++k) {
        const Difference<C> difference{args, x_row, k};
        const auto fetch_t = [&](int d, C(&t)[Tile::kPerThread]) {
          difference(d, t);
          bool nan = false;
#pragma unroll
          for (int e = 0; e < Tile::kPerThread; ++e) nan = nan || t[e] != t[e];
          if (nan) shared.nan_row[fetched] = 1;
        };
        C sum[kOfThread];
#pragma unroll
        for (int i = 0; i < kOfThread; ++i) sum[i] = C(0);
        for (int e0 = 0; e0 < dims; e0 += kColumns) {
          const Factor<C> factor{static_cast<const C*>(args.scale) + k * args.factor_stride, e0, dims};
          const auto fetch_factor = [&](int d, int e) {
            const C f = factor(d, e);
            if (f != f) shared.nan_factor = 1;
            return f;
          };
          C u[kOfThread][4] = {};
          multiply(shared.stage, buffer, 0, e0 + kColumns < dims ? e0 + kColumns : dims, fetch_t, fetch_factor, u);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const C one = e0 + tx * 4 + j < dims ? C(1) : C(0);
#pragma unroll
            for (int i = 0; i < kOfThread; ++i) sum[i] += math::fma(u[i][j], u[i][j], -one);
          }
        }
#pragma unroll
        for (int i = 0; i < kOfThread; ++i) {
#pragma unroll
          for (int offset = kSide / 2; offset > 0; offset /= 2)
            sum[i] += __shfl_down_sync(kFullMask, sum[i], static_cast<unsigned>(offset));
          if (tx == 0) {
            // infinite products of both signs make NaN of what is only out of range
            const int r = ty * kOfThread + i;
            const bool nan = shared.nan_row[r] != 0 || shared.nan_factor != 0;
            shared.sum[k - k0][r] = sum[i] == sum[i] || nan ? sum[i] : math::infinity<C>();
          }
        }
      }
      __syncthreads();
      C e[1][kPerThread];
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        const int of = part() * kPerThread + j;
        e[0][j] = k0 + of < components ? C(-0.5) * shared.sum[of][row(0)] : C(0);
      }
      finish(k0, Constants<C, kPerThread>(args, k0 + part() * kPerThread), e);
      __syncthreads();
    }
    return true;
  }
};

}  // namespace cuda
}  // namespace vae_fast

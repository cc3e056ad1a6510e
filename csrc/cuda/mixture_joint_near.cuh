// The joint densities of a diagonal mixture whose means are all near the centre: two multiply-adds for an element, and nothing else that
// depends on it. Dense floats in whole tiles of dimensions, which come 16 bytes at a time. DiagonalJoint's operations in the
// same order, for kernels that have the registers: beside a running sum of the rows they are not enough.
#pragma once

#include "mixture_joint.cuh"

namespace vae_fast {
namespace cuda {

struct NearJoint {
  using C = float;
  using Tile = MixtureTile<C>;
  using Otherwise = DiagonalJoint<C, 4>;
  static constexpr int kRows = Otherwise::kRows, kPerThread = Otherwise::kPerThread, kParts = Otherwise::kParts;
  static constexpr int kComponents = Otherwise::kComponents, kStride = Otherwise::kStride, kFetch = Otherwise::kFetch;
  static_assert(kFetch == 4 && Tile::kPerThread % 4 == 0, "fetched 16 bytes at a time");

  struct Stage {
    alignas(16) C x[Tile::kSteps][Tile::kRowStride];  // less the centre
    alignas(16) C scale[Tile::kSteps][kStride];
    alignas(16) C offset[Tile::kSteps][kStride];  // (centre - mean) scale
  };
  struct Shared {
    Stage stage[2];
    int32_t far;
  };
  static VF_DEVICE int part() { return Otherwise::part(); }
  static VF_DEVICE int row(int i) { return Otherwise::row(i); }

  /// Whether the call's tensors lie so; of the means only the kernel knows.
  static bool takes(const MixtureArgs& m) {
    const auto aligned = [](const void* p) { return p != nullptr && reinterpret_cast<uintptr_t>(p) % 16 == 0; };
    return !m.full && !m.products && m.components > kSide && m.dims % Tile::kSteps == 0 && m.x_scale == nullptr && m.x.inner_stride == 1 &&
           vector_access<C, 4>(m.x) && aligned(m.means) && aligned(m.scale) && aligned(m.centre);
  }

  /// Whether every mean is near the centre. Every thread of the block must come here.
  static VF_DEVICE bool all_near(const MixtureArgs& args, int32_t& far) {
    const int thread = static_cast<int>(threadIdx.x), components = static_cast<int>(args.components), dims = static_cast<int>(args.dims);
    if (thread == 0) far = 0;
    __syncthreads();
    bool near = true;
#pragma unroll 1
    for (int d = thread % kSide * 4; d < dims; d += kSide * 4) {
      C centre[4];
      take(args.centre + d, centre);
#pragma unroll
      for (int e = 0; e < 4; ++e) near = near & (math::abs(centre[e]) <= math::mixture_near_centre<C>());
#pragma unroll 1
      for (int k = thread / kSide; k < components; k += kSide) {
        const int64_t at = static_cast<int64_t>(k) * dims + d;
        C mean[4], scale[4];
        take(static_cast<const C*>(args.means) + at, mean);
        take(static_cast<const C*>(args.scale) + at, scale);
#pragma unroll
        for (int e = 0; e < 4; ++e) near = near & (math::abs((centre[e] - mean[e]) * scale[e]) <= math::mixture_near<C>());
      }
    }
    if (!near) far = 1;
    __syncthreads();
    return far == 0;
  }

  /// As DiagonalJoint::run; false where a mean is far.
  template <typename Finish>
  VF_DEVICE static bool run(const MixtureArgs& args, int64_t first_row, Shared& shared, Finish&& finish) {
    if (!all_near(args, shared.far)) return false;
    const int thread = static_cast<int>(threadIdx.x), tx = thread % kSide, ty = thread / kSide;
    const int components = static_cast<int>(args.components), dims = static_cast<int>(args.dims);
    const int fetched = thread / Tile::kLanes, x_step = thread % Tile::kLanes * Tile::kPerThread;
    const int of_step = Tile::kSteps / kFetch, component = thread / of_step, step = thread % of_step * kFetch;
    // beyond the last row or component is the last once more, whose results are not used
    const int64_t n = first_row + fetched < args.rows ? first_row + fetched : args.rows - 1;
    const C* const x_row = reinterpret_cast<const C*>(row_start(args.x, n)) + x_step;

    C x[Tile::kPerThread], mean[kFetch], scale[kFetch];
    const auto fetch = [&](int k, int d) {
      const int of = k + component < components ? k + component : components - 1;
      const int64_t at = static_cast<int64_t>(of) * dims + d + step;
      take(x_row + d, x);
      take(static_cast<const C*>(args.means) + at, mean);
      take(static_cast<const C*>(args.scale) + at, scale);
    };
    const auto put = [&](Stage& s, int d) {
      C centre[Tile::kPerThread], of_mean[kFetch];
      take(args.centre + d + x_step, centre);
      take(args.centre + d + step, of_mean);
#pragma unroll
      for (int e = 0; e < Tile::kPerThread; ++e) s.x[x_step + e][fetched] = math::bounded(x[e]) - centre[e];
#pragma unroll
      for (int e = 0; e < kFetch; ++e) {
        s.offset[step + e][component] = (of_mean[e] - math::bounded(mean[e])) * scale[e];
        s.scale[step + e][component] = scale[e];
      }
    };

    SquareSums<C, kRows, kPerThread> squares;
    int k = 0, d = 0, buffer = 0;
    fetch(0, 0);
    for (;;) {
      Stage& s = shared.stage[buffer];
      put(s, d);
      buffer ^= 1;
      __syncthreads();
      const bool last = d + Tile::kSteps == dims;
      const int next_k = last ? k + kComponents : k, next_d = last ? 0 : d + Tile::kSteps;
      if (next_k < components) fetch(next_k, next_d);
      squares.begin(Tile::kSteps);
#pragma unroll 1
      for (int p = 0; p < Tile::kSteps; ++p) {
        C ys[kRows], bs[kPerThread], rs[kPerThread];
        take(&s.x[p][ty * kRows], ys);
        take(&s.offset[p][tx * kPerThread], bs);
        take(&s.scale[p][tx * kPerThread], rs);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int j = 0; j < kPerThread; ++j) {
            const C u = math::fma(ys[i], rs[j], bs[j]);
            squares.part[i][j] = math::fma(u, u, squares.part[i][j]);
          }
        }
      }
      squares.add_part();
      if (last) {
        squares.finish();
        finish(k, Constants<C, kPerThread>(args, k + tx * kPerThread), squares.part);
      }
      if (next_k >= components) break;
      k = next_k, d = next_d;
    }
    return true;
  }
};

}  // namespace cuda
}  // namespace vae_fast

// e of a tile of rows on tensor cores: the quadratic multiplied out, -(u^2 - 1) / 2 = -t/2 y^2 + m t y + (1 - m^2 t) / 2 with y = x - c,
// m = mean - c and t = 1 / sigma^2, as matrix products over y^2 and over y.
//
// Tensor cores multiply TF32 numbers, of 11 significant bits. Every operand is therefore the sum of two, and of the four products of two
// sums all but that of the small parts are added up: 2^-24 of an operand is lost, as in float. The price is cancellation: e is as accurate
// as y^2 t is small, wherever x and a mean are close to each other but far from c.
#pragma once

#include "mixture_joint.cuh"

namespace vae_fast {
namespace cuda {

/// v to the nearest TF32 number.
VF_DEVICE float to_tf32(float v) {
#if defined(__CUDA_ARCH__)
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return __uint_as_float(bits);
#elif defined(__CUDACC__)
  return v;
#else
  return vf_shim::to_tf32(v);
#endif
}

/// sum += a b of a warp, for a of 16 x 8 and b of 8 x 8. With g = lane / 4 and q = lane % 4, a lane has a(g, q), a(g + 8, q), a(g, q + 4),
/// a(g + 8, q + 4); b(q, g), b(q + 4, g); and of the sum (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1).
VF_DEVICE void multiply_add(float (&sum)[4], const float (&a)[4], float b0, float b1) {
#if defined(__CUDA_ARCH__)
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
#elif !defined(__CUDACC__)
  vf_shim::multiply_add_tf32(sum, a, b0, b1);
#endif
}

/// The two TF32 parts of a number, or of a product.
struct Parts {
  float big, small;
  VF_DEVICE static Parts of(float v) {
    const float big = to_tf32(v);
    return {big, to_tf32(v - big)};
  }
  VF_DEVICE static Parts of(float a, float b) {
    const float big = to_tf32(math::mul_rn(a, b));
    return {big, to_tf32(math::fma_rn(a, b, -big))};
  }
};

/// The product of two operands in parts, without that of the small ones. The small first, and eight terms at a time, to be added up by the
/// caller: the sums of tensor cores are not rounded to nearest.
VF_DEVICE void multiply(const float (&big)[4], const float (&small)[4], float big0, float big1, float small0, float small1,
                        float (&product)[4]) {
#pragma unroll
  for (int e = 0; e < 4; ++e) product[e] = 0.0f;
  multiply_add(product, small, big0, big1);
  multiply_add(product, big, small0, small1);
  multiply_add(product, big, big0, big1);
}

/// Diagonal, in float: 2 kTiles components per thread, 16 kTiles at once.
template <int kTiles>
struct ProductJoint {
  using Tile = MixtureTile<float>;
  using Otherwise = DiagonalJoint<float, 1>;  // few at once: the registers must do for both
  static constexpr int kRows = 4, kPerThread = 2 * kTiles, kParts = 8, kComponents = kParts * kPerThread, kSteps = 8;
  // eight threads then read 16 bytes each from different banks
  static constexpr int kRowStride = Tile::kRows + 8, kStride = kComponents + 2;
  static constexpr int kAll = kComponents * kSteps, kFetch = kAll < kThreads ? 1 : kAll / kThreads, kOfStep = kSteps / kFetch;
  static constexpr int kOfRow = Tile::kRows * kSteps / kThreads, kLanes = kSteps / kOfRow;
  static_assert(kParts * Tile::kRows / kRows == kThreads && kOfStep <= kWarp, "a thread per part of a row");
  // Beyond these, y^2 t may be out of range.
  static constexpr float kFarthest = 16777216.0f, kNarrowest = 16777216.0f;

  struct Stage {
    alignas(16) float y[kSteps][kRowStride];
    alignas(16) float of[kSteps][kStride][4];    // the parts of -t/2, and of m t
    alignas(16) float constant[2][kComponents];  // (1 - m^2 t) / 2 summed over four steps
    int32_t far;
  };
  struct Shared {
    Stage stage[2];
  };
  static VF_DEVICE int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  static VF_DEVICE int part() { return static_cast<int>(threadIdx.x) / kWarp % 2 * 4 + lane() % 4; }
  static VF_DEVICE int row(int i) { return opaque(static_cast<int>(threadIdx.x) / (2 * kWarp) * 8 + lane() / 4) * kRows + i; }

  /// As DiagonalJoint::run; but false, and never mind what finish got, where an argument is NaN or so large that the products are out of
  /// range (or there are no tensor cores for them): Otherwise is then right for all components.
  template <typename Finish>
  VF_DEVICE static bool run(const MixtureArgs& args, int64_t first_row, Shared& shared, Finish&& finish) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    return false;
#else
    const int thread = static_cast<int>(threadIdx.x), group = lane() / 4, quad = lane() % 4;
    const int components = static_cast<int>(args.components), dims = static_cast<int>(args.dims);
    // of the tiles of eight: where column `group` of the first is, so that a thread's results are of neighbouring components
    const int column = part() / 4 * 4 * kPerThread + group / 2 * kPerThread + group % 2;
    const char* const x_row = row_or_null(args, first_row + thread / kLanes);

    float x[kOfRow], mean[kFetch], scale[kFetch];
    const auto fetch = [&](int k, int d) {
      const int own = opaque(thread), component = own / kOfStep, step = own % kOfStep * kFetch;
      load_run(args.x, x_row, d + own % kLanes * kOfRow, dims, x);
      const int64_t at = static_cast<int64_t>(k + component) * dims + d + step;
      const bool used = component < kComponents && k + component < components;
#pragma unroll
      for (int e = 0; e < kFetch; ++e) {
        const bool inside = used && d + step + e < dims;
        mean[e] = inside ? static_cast<const float*>(args.means)[at + e] : 0.0f;
        scale[e] = inside ? static_cast<const float*>(args.scale)[at + e] : 0.0f;
      }
    };
    const auto put = [&](Stage& s, int k, int d) {
      const int own = opaque(thread), fetched = own / kLanes, x_step = own % kLanes * kOfRow;
      const int component = own / kOfStep, step = own % kOfStep * kFetch;
      bool near = true;
#pragma unroll
      for (int e = 0; e < kOfRow; ++e) {
        const int at = d + x_step + e;
        const float y = x_row != nullptr && at < dims ? read_x(args, x[e], at) - args.centre[at] : 0.0f;
        near = near && math::abs(y) <= kFarthest;
        s.y[x_step + e][fetched] = y;
      }
      float constant = 0.0f;
#pragma unroll
      for (int e = 0; e < kFetch; ++e) {
        const bool inside = component < kComponents && k + component < components && d + step + e < dims;
        const float m = inside ? math::bounded(mean[e]) - args.centre[d + step + e] : 0.0f, t = scale[e] * scale[e];
        near = near && math::abs(m) <= kFarthest && scale[e] <= kNarrowest;
        const Parts square = Parts::of(-0.5f, t), linear = Parts::of(m, t);
        const float of[4] = {square.big, square.small, linear.big, linear.small};
        if (component < kComponents) store(s.of[step + e][component], of);
        if (inside) constant += math::fma_rn(-0.5f * m, m * t, 0.5f);
      }
#pragma unroll
      for (int offset = kOfStep / 4; offset > 0; offset /= 2)
        constant += __shfl_xor_sync(kFullMask, constant, static_cast<unsigned>(offset));
      if (component < kComponents && step % 4 == 0) s.constant[step / 4][component] = constant;
      if (!near) s.far = 1;
    };

    float sum[kRows][kPerThread];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) sum[i][j] = 0.0f;
    }
    int k = 0, d = 0, buffer = 0;
    if (thread < 2) shared.stage[thread].far = 0;
    __syncthreads();
    fetch(0, 0);
    for (;;) {
      const Stage& s = shared.stage[buffer];
      put(shared.stage[buffer], k, d);
      buffer ^= 1;
      __syncthreads();
      if (s.far != 0) return false;
      const bool last = d + kSteps >= dims;
      const int next_k = last ? k + kComponents : k, next_d = last ? 0 : d + kSteps;
      if (next_k < components) fetch(next_k, next_d);
#pragma unroll 1
      for (int half = 0; half < 2; ++half) {
        // one product has four steps: columns 0 to 3 of its left side are y^2, columns 4 to 7 y
        const int p = 4 * half + quad;
        float y[kRows], big[2][4], small[2][4];
        take(&s.y[p][row(0)], y);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const Parts square = Parts::of(y[i], y[i]), linear = Parts::of(y[i]);
          big[i / 2][i % 2] = square.big, small[i / 2][i % 2] = square.small;
          big[i / 2][2 + i % 2] = linear.big, small[i / 2][2 + i % 2] = linear.small;
        }
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          float of[4], constant[2];
          take(s.of[p][column + 2 * j], of);
          take(&s.constant[half][part() * kPerThread + 2 * j], constant);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float product[4];
            multiply(big[i], small[i], of[0], of[2], of[1], of[3], product);
#pragma unroll
            for (int e = 0; e < 4; ++e) sum[2 * i + e / 2][2 * j + e % 2] += product[e] + constant[e % 2];
          }
        }
      }
      if (last) {
        float found[kRows][kPerThread];
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int j = 0; j < kPerThread; ++j) found[i][j] = sum[i][j], sum[i][j] = 0.0f;
        }
        finish(k, Constants<float, kPerThread>(args, k + part() * kPerThread), found);
      }
      if (next_k >= components) break;
      k = next_k, d = next_d;
    }
    return true;
#endif
  }
};

}  // namespace cuda
}  // namespace vae_fast

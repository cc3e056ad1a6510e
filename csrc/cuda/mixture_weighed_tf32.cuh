// Sums that responsibilities weigh, on tensor cores: of 64 by 64 sums of a block, sum_s q_is b_sd for two b at once.
//
// The moments of a component are sums over rows with b = y and y^2, y = x - c; the gradient of x is made of sums over components with
// b = t and m t, m = mean - c and t = 1 / sigma^2. Every operand is the sum of two TF32 numbers, as in mixture_joint_tf32.cuh, and the
// price is the same: a sum is as accurate as its terms are small, whatever of them cancels once c is put right.
#pragma once

#include "mixture_joint_tf32.cuh"

namespace vae_fast {
namespace cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kTensorCores = false;
#else
constexpr bool kTensorCores = true;
#endif

/// Operands of sixteen terms s, as the lanes of a warp take them: with g = lane / 4 and p = lane % 4, weights are (sum, term) = (g, p),
/// (g + 8, p), (g, p + 4), (g + 8, p + 4) of 16 x 8, and a b is (term, sum) = (p, g), (p + 4, g) of 8 x 8, the big parts and the small.
/// A thread fetches one fragment of the weights, and all that a column of sixteen terms has for four lanes.
struct WeighedTile {
  static constexpr int kSums = 64, kSteps = 16;
  alignas(16) float big[2][4][kWarp][4], small[2][4][kWarp][4];
  alignas(16) float b[2][8][2][kWarp][4];

  /// Beyond this a weight times 2^72, the largest b, may be out of range.
  static constexpr float kMostWeight = 1099511627776.0f;
  /// Beyond this the second b may be; and the least 1 / sigma, so that the small part of its square is a normal number.
  static constexpr float kFarthest = 16777216.0f, kWidest = 9.1e-13f;

  static VF_DEVICE int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  static VF_DEVICE int warp() { return static_cast<int>(threadIdx.x) / kWarp; }
  /// Of the weights that a thread fetches.
  static VF_DEVICE int sum(int e) { return warp() % 4 * 16 + e % 2 * 8 + lane() / 4; }
  static VF_DEVICE int term(int e) { return warp() / 4 * 8 + e / 2 * 4 + lane() % 4; }
  /// Of the b that it fetches.
  static VF_DEVICE int column() { return warp() * 8 + lane() / 4; }
  static VF_DEVICE int column_term(int e) { return e * 4 + lane() % 4; }

  VF_DEVICE void put_weights(const float (&q)[4]) {
    float high[4], low[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const Parts parts = Parts::of(q[e]);
      high[e] = parts.big, low[e] = parts.small;
    }
    store(big[warp() / 4][warp() % 4][lane()], high);
    store(small[warp() / 4][warp() % 4][lane()], low);
  }
  VF_DEVICE void put(int which, const Parts (&parts)[4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float of[4] = {parts[2 * half].big, parts[2 * half + 1].big, parts[2 * half].small, parts[2 * half + 1].small};
      store(b[half][warp()][which][lane()], of);
    }
  }
};

/// A block is 2 x 4 warps, each with 32 x 16 of the sums, in fragments of 16 x 8.
struct WeighedSums {
  float of[2][2][2][4];  // of the first and of the second b

  /// The weight's and the b's index of sum [][i][j][e].
  static VF_DEVICE int left(int i, int e) { return WeighedTile::warp() % 2 * 32 + i * 16 + e / 2 * 8 + WeighedTile::lane() / 4; }
  static VF_DEVICE int right(int j, int e) { return WeighedTile::warp() / 2 * 16 + j * 8 + WeighedTile::lane() % 4 * 2 + e % 2; }

  VF_DEVICE void clear() {
#pragma unroll
    for (int n = 0; n < 32; ++n) of[n / 16][n / 8 % 2][n / 4 % 2][n % 4] = 0.0f;
  }

  /// Adds a tile's terms, for the first b alone or for both.
  template <int kOfB>
  VF_DEVICE void add(const WeighedTile& tile) {
    if constexpr (!kTensorCores) return;
    const int lane = WeighedTile::lane(), up = WeighedTile::warp() % 2 * 2, side = WeighedTile::warp() / 2 * 2;
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      float big[2][4], small[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        take(tile.big[half][up + i][lane], big[i]);
        take(tile.small[half][up + i][lane], small[i]);
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int which = 0; which < kOfB; ++which) {
          float b[4];
          take(tile.b[half][side + j][which][lane], b);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float product[4];
            multiply(big[i], small[i], b[0], b[1], b[2], b[3], product);
#pragma unroll
            for (int e = 0; e < 4; ++e) of[which][i][j][e] += product[e];
          }
        }
      }
    }
  }
};

}  // namespace cuda
}  // namespace vae_fast

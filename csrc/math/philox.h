// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; SC 2011, section 5.3) and the normals made of it.
//
// The noise of element i is a function of (seed, offset, i): block i / 4, word i % 4, whatever the machine, thread or data type.
// The counter is (offset / 4, i / 4), 64 bits each, which is cuRAND's layout (subsequence i / 4): draws that advance torch's CUDA
// generator by 4 never meet those of torch's own kernels.
#pragma once

#include "elementary.h"

VF_MATH_BEGIN

/// Words of one Philox block.
struct PhiloxBlock {
  uint32_t w[4];
};

VF_INLINE PhiloxBlock philox(uint64_t seed, uint64_t offset, uint64_t block) {
  uint32_t c0 = static_cast<uint32_t>(offset >> 2), c1 = static_cast<uint32_t>(offset >> 34);
  uint32_t c2 = static_cast<uint32_t>(block), c3 = static_cast<uint32_t>(block >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

/// Box and Muller (1958): two words to two independent N(0, 1) values. The radius takes the upper 31 bits of w0, so |z| < 6.7; the angle takes
/// those of w1, reduced to an eighth of a turn in integers, so no accuracy is lost. Only products, sums and a square root that round
/// alike everywhere: the same bits on every instruction set and device.
VF_INLINE void box_muller(uint32_t w0, uint32_t w1, float& z0, float& z1) {
  const float u = mul_rn(add_rn(static_cast<float>(static_cast<int32_t>(w0 >> 1)), 0.5f), 4.65661287e-10f);  // 2^-31
  const float r = sqrt_rn(mul_rn(-2.0f, log_rn(u)));
  const uint32_t turn = w1 >> 1;                           // in units of 2^-31 turns
  const uint32_t quarter = (turn + (1u << 28)) >> 29;      // nearest quarter turn, 0..4
  const int32_t rest = static_cast<int32_t>(turn - (quarter << 29));
  const float t = mul_rn(static_cast<float>(rest), 4.65661287e-10f);
  const float tt = mul_rn(t, t);
  float s = -75.4016113f;  // sin(2 pi t) / t on |t| <= 1/8
  s = add_rn(mul_rn(s, tt), 81.5925446f);
  s = add_rn(mul_rn(s, tt), -41.3416634f);
  s = mul_rn(add_rn(mul_rn(s, tt), 6.28318548f), t);
  float c = 59.2201691f;  // cos(2 pi t)
  c = add_rn(mul_rn(c, tt), -85.4428482f);
  c = add_rn(mul_rn(c, tt), 64.9393158f);
  c = add_rn(mul_rn(c, tt), -19.7392082f);
  c = add_rn(mul_rn(c, tt), 1.0f);
  const bool odd = (quarter & 1) != 0;
  const float cos_abs = odd ? s : c, sin_abs = odd ? c : s;
  const bool cos_minus = ((quarter + 1) & 2) != 0, sin_minus = (quarter & 2) != 0;
  z0 = mul_rn(r, cos_minus ? -cos_abs : cos_abs);
  z1 = mul_rn(r, sin_minus ? -sin_abs : sin_abs);
}

/// The four normals of elements 4 block .. 4 block + 3.
VF_INLINE void normal4(uint64_t seed, uint64_t offset, uint64_t block, float& z0, float& z1, float& z2, float& z3) {
  const PhiloxBlock b = philox(seed, offset, block);
  box_muller(b.w[0], b.w[1], z0, z1);
  box_muller(b.w[2], b.w[3], z2, z3);
}

VF_MATH_END

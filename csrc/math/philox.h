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

// What a round asks of a word: its product with a constant in full, the halves of that, and exclusive or. Vector units that hold a word in
// each 64-bit lane give the same names to their own instructions (csrc/cpu/lanes.h).
VF_INLINE uint64_t wide_product(uint32_t a, uint32_t m) { return static_cast<uint64_t>(a) * m; }
VF_INLINE uint32_t high_word(uint64_t p) { return static_cast<uint32_t>(p >> 32); }
VF_INLINE uint32_t low_word(uint64_t p) { return static_cast<uint32_t>(p); }
VF_INLINE uint32_t xor3(uint32_t a, uint32_t b, uint32_t key) { return a ^ b ^ key; }

/// The state between rounds: counter words c, key words k.
template <typename Word>
struct PhiloxState {
  Word c0, c1, c2, c3;
  uint32_t k0, k1;

  VF_INLINE void round() {
    const auto p0 = wide_product(c0, 0xD2511F53u), p1 = wide_product(c2, 0xCD9E8D57u);
    c0 = xor3(high_word(p1), c1, k0);
    c1 = low_word(p1);
    c2 = xor3(high_word(p0), c3, k1);
    c3 = low_word(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  VF_INLINE void rounds() {
    round(), round(), round(), round(), round();
    round(), round(), round(), round(), round();
  }
};

VF_INLINE PhiloxBlock philox(uint64_t seed, uint64_t offset, uint64_t block) {
  PhiloxState<uint32_t> s{static_cast<uint32_t>(offset >> 2), static_cast<uint32_t>(offset >> 34), static_cast<uint32_t>(block),
                          static_cast<uint32_t>(block >> 32), static_cast<uint32_t>(seed),         static_cast<uint32_t>(seed >> 32)};
  s.rounds();
  return {{s.c0, s.c1, s.c2, s.c3}};
}

/// Box and Muller (1958): two words to two independent N(0, 1) values. The radius takes the upper 31 bits of w0, so |z| < 6.7; the angle
/// takes those of w1, reduced to an eighth of a turn in integers, so no accuracy is lost. Only operations that round alike everywhere: the
/// same bits on every instruction set and device.
VF_INLINE void box_muller(uint32_t w0, uint32_t w1, float& z0, float& z1) {
  const float u = mul_rn(add_rn(static_cast<float>(static_cast<int32_t>(w0 >> 1)), 0.5f), 4.65661287e-10f);  // 2^-31
  const float r = sqrt_rn(mul_rn(-2.0f, log_normal<Portable>(u)));
  const uint32_t turn = w1 >> 1;                       // in units of 2^-31 turns
  const uint32_t quarter = (turn + (1u << 28)) >> 29;  // nearest quarter turn, 0..4
  const int32_t rest = static_cast<int32_t>(turn - (quarter << 29));
  const float t = mul_rn(static_cast<float>(rest), 4.65661287e-10f);
  const float tt = mul_rn(t, t);
  float s = fma_rn(-75.4016113f, tt, 81.5925446f);  // sin(2 pi t) / t on |t| <= 1/8
  s = fma_rn(s, tt, -41.3416634f);
  s = mul_rn(fma_rn(s, tt, 6.28318548f), t);
  float c = fma_rn(59.2201691f, tt, -85.4428482f);  // cos(2 pi t)
  c = fma_rn(c, tt, 64.9393158f);
  c = fma_rn(c, tt, -19.7392082f);
  c = fma_rn(c, tt, 1.0f);
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

// Philox words for a run of blocks. On x86 each 32-bit word sits in the lower half of a 64-bit lane, which is where the machine multiplies
// 32 by 32 bits; the compiler does not find that form by itself. Upper halves hold rubbish until the end.
#pragma once

#include "../math/philox.h"

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 sees it in its own headers' _mm512_undefined
#endif
#endif

namespace vae_fast {
namespace VF_ISA {

#if defined(__x86_64__)
struct Lanes {
#if VF_VECTOR_BYTES == 64
  __m512i v;
  VF_INLINE static Lanes all(uint64_t x) { return {_mm512_set1_epi64(static_cast<long long>(x))}; }
#elif VF_VECTOR_BYTES == 32
  __m256i v;
  VF_INLINE static Lanes all(uint64_t x) { return {_mm256_set1_epi64x(static_cast<long long>(x))}; }
#else
  __m128i v;
  VF_INLINE static Lanes all(uint64_t x) { return {_mm_set1_epi64x(static_cast<long long>(x))}; }
#endif
  static constexpr int kCount = VF_VECTOR_BYTES / 8;

  VF_INLINE static Lanes from(const uint64_t (&x)[kCount]) {
    Lanes l;
    memcpy(&l.v, x, sizeof(l.v));
    return l;
  }
  VF_INLINE void store_words(uint32_t* to) const {
#if VF_VECTOR_BYTES == 64
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi64_epi32(v));
#elif VF_VECTOR_BYTES == 32
    const __m256i even = _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(even));
#else
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi32(v, _MM_SHUFFLE(2, 0, 2, 0)));
#endif
  }
};

#if VF_VECTOR_BYTES == 64
VF_INLINE Lanes wide_product(Lanes a, uint32_t m) { return {_mm512_mul_epu32(a.v, Lanes::all(m).v)}; }
VF_INLINE Lanes high_word(Lanes p) { return {_mm512_srli_epi64(p.v, 32)}; }
VF_INLINE Lanes xor3(Lanes a, Lanes b, uint32_t key) { return {_mm512_ternarylogic_epi64(a.v, b.v, Lanes::all(key).v, 0x96)}; }
#elif VF_VECTOR_BYTES == 32
VF_INLINE Lanes wide_product(Lanes a, uint32_t m) { return {_mm256_mul_epu32(a.v, Lanes::all(m).v)}; }
VF_INLINE Lanes high_word(Lanes p) { return {_mm256_srli_epi64(p.v, 32)}; }
VF_INLINE Lanes xor3(Lanes a, Lanes b, uint32_t key) { return {_mm256_xor_si256(_mm256_xor_si256(a.v, b.v), Lanes::all(key).v)}; }
#else
VF_INLINE Lanes wide_product(Lanes a, uint32_t m) { return {_mm_mul_epu32(a.v, Lanes::all(m).v)}; }
VF_INLINE Lanes high_word(Lanes p) { return {_mm_srli_epi64(p.v, 32)}; }
VF_INLINE Lanes xor3(Lanes a, Lanes b, uint32_t key) { return {_mm_xor_si128(_mm_xor_si128(a.v, b.v), Lanes::all(key).v)}; }
#endif
VF_INLINE Lanes low_word(Lanes p) { return p; }

constexpr int kLanes = Lanes::kCount;
#else
constexpr int kLanes = 1;
#endif

/// w[k][b] = word k of block + b for b < count, which is a multiple of kLanes.
template <int size>
inline void philox_words(uint64_t seed, uint64_t offset, uint64_t block, int count, uint32_t (&w)[4][size]) {
#if defined(__x86_64__)
  for (int b = 0; b < count; b += kLanes) {
    uint64_t index[kLanes], high[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      index[i] = block + static_cast<uint64_t>(b + i);
      high[i] = index[i] >> 32;
    }
    math::PhiloxState<Lanes> s{Lanes::all(offset >> 2), Lanes::all(offset >> 34),    Lanes::from(index),
                               Lanes::from(high),       static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
    s.rounds();
    s.c0.store_words(&w[0][b]);
    s.c1.store_words(&w[1][b]);
    s.c2.store_words(&w[2][b]);
    s.c3.store_words(&w[3][b]);
  }
#else
  for (int b = 0; b < count; ++b) {
    const math::PhiloxBlock p = math::philox(seed, offset, block + static_cast<uint64_t>(b));
    for (int k = 0; k < 4; ++k) w[k][b] = p.w[k];
  }
#endif
}

}  // namespace VF_ISA
}  // namespace vae_fast

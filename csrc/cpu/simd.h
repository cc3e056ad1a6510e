// Vectors of the instruction set's width, for the loops that hold many sums in registers and that the compiler does not find by itself.
#pragma once

#include <type_traits>
#include <utility>

#include "../math/portable.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace vae_fast {
namespace VF_ISA {

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(VF_VECTOR_BYTES)));
};
template <typename T>
using Vec = typename VectorOf<T>::type;
template <typename T>
constexpr int kWidth = VF_VECTOR_BYTES / static_cast<int>(sizeof(T));

/// Registers: how many sums a loop may hold is decided by how many there are, 32 or 16. And whether the result of an instruction has a
/// register of its own: what is subtracted may then stay in memory. In the oldest of x86 it takes the minuend's place.
#if defined(__aarch64__)
constexpr bool kManyRegisters = true, kThreeOperands = true;
#else
constexpr bool kManyRegisters = VF_VECTOR_BYTES == 64, kThreeOperands = VF_VECTOR_BYTES >= 32;
#endif

template <typename T>
VF_INLINE Vec<T> load_vec(const T* p) {
  Vec<T> v;
  memcpy(&v, p, sizeof(v));
  return v;
}
template <typename T>
VF_INLINE void store_vec(T* p, Vec<T> v) {
  memcpy(p, &v, sizeof(v));
}
/// The value in every lane: subtracting zero changes nothing, not even the sign of zero, so only the broadcast is left of it.
template <typename T>
VF_INLINE Vec<T> every(T x) {
  return x - Vec<T>{};
}

/// a * b + c, fused where the instruction set fuses it.
#if defined(VF_FMA) && VF_VECTOR_BYTES == 64
VF_INLINE Vec<float> madd(Vec<float> a, Vec<float> b, Vec<float> c) { return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
VF_INLINE Vec<double> madd(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
#elif defined(VF_FMA) && VF_VECTOR_BYTES == 32
VF_INLINE Vec<float> madd(Vec<float> a, Vec<float> b, Vec<float> c) { return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
VF_INLINE Vec<double> madd(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#elif defined(VF_FMA)
VF_INLINE Vec<float> madd(Vec<float> a, Vec<float> b, Vec<float> c) {
  return (Vec<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
VF_INLINE Vec<double> madd(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
#else
template <typename V>
VF_INLINE V madd(V a, V b, V c) {
  return a * b + c;
}
#endif

/// Halves of `half` lanes each, the upper one of `a` swapped with the lower one of `b`. The order of the lanes is a constant from the
/// start: of one that loops make up the compiler makes general shuffles, or loads of single lanes.
template <typename T, int half, int... lane>
VF_INLINE void swap_halves(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, lane...>) {
  constexpr int width = kWidth<T>;
#if defined(__clang__)
  const Vec<T> first = __builtin_shufflevector(a, b, ((lane & half) != 0 ? width + lane - half : lane)...);
  b = __builtin_shufflevector(a, b, ((lane & half) != 0 ? width + lane : lane + half)...);
#else
  using Lane = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  const Vec<T> first = __builtin_shuffle(a, b, Vec<Lane>{static_cast<Lane>((lane & half) != 0 ? width + lane - half : lane)...});
  b = __builtin_shuffle(a, b, Vec<Lane>{static_cast<Lane>((lane & half) != 0 ? width + lane : lane + half)...});
#endif
  a = first;
}

/// Rows become columns: swaps the off-diagonal halves, then those of the halves, ... (Eklundh 1972).
template <typename T, int half = kWidth<T> / 2>
VF_INLINE void transpose(Vec<T> (&v)[kWidth<T>]) {
#pragma GCC unroll 16
  for (int i = 0; i < kWidth<T>; ++i) {
    if ((i & half) == 0) swap_halves<T, half>(v[i], v[i + half], std::make_integer_sequence<int, kWidth<T>>());
  }
  if constexpr (half > 1) transpose<T, half / 2>(v);
}

}  // namespace VF_ISA
}  // namespace vae_fast

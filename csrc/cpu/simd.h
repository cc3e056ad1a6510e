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

/// Registers: how many sums a loop may hold is decided by how many there are.
constexpr bool kManyRegisters = VF_VECTOR_BYTES == 64;

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
#else
template <typename V>
VF_INLINE V madd(V a, V b, V c) {
  return a * b + c;
}
#endif

#if defined(__GNUC__) && !defined(__clang__)
/// Swaps the off-diagonal halves of each `2 * half` lanes of two vectors. The lanes are constants in a list, as what a loop fills in is put
/// together again at every call.
template <typename T, int half, size_t... lane>
VF_INLINE void swap_halves(Vec<T>& a, Vec<T>& b, std::index_sequence<lane...>) {
  using Lane = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  constexpr int width = kWidth<T>;
  constexpr Vec<Lane> upper = {static_cast<Lane>((lane & half) != 0 ? width + lane - half : lane)...};
  constexpr Vec<Lane> lower = {static_cast<Lane>((lane & half) != 0 ? width + lane : lane + half)...};
  const Vec<T> x = a, y = b;
  a = __builtin_shuffle(x, y, upper);
  b = __builtin_shuffle(x, y, lower);
}
/// The off-diagonal halves, then those of the halves, ... (Eklundh 1972).
template <typename T, int half>
VF_INLINE void transpose_halves(Vec<T> (&v)[kWidth<T>]) {
  if constexpr (half > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kWidth<T>; ++i) {
      if ((i & half) == 0) swap_halves<T, half>(v[i], v[i + half], std::make_index_sequence<kWidth<T>>());
    }
    transpose_halves<T, half / 2>(v);
  }
}
#endif

/// Rows become columns.
template <typename T>
VF_INLINE void transpose(Vec<T> (&v)[kWidth<T>]) {
  constexpr int width = kWidth<T>;
#if defined(__GNUC__) && !defined(__clang__)
  transpose_halves<T, width / 2>(v);
#else
  for (int i = 0; i < width; ++i) {
    for (int j = 0; j < i; ++j) {
      const T t = v[i][j];
      v[i][j] = v[j][i];
      v[j][i] = t;
    }
  }
#endif
}

}  // namespace VF_ISA
}  // namespace vae_fast

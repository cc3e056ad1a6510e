// Moving rectangles of a tensor between memory and small buffers of the compute type, which stay in the first-level cache. Every kernel
// works on such tiles, so data types, broadcasting and layout are dealt with here and nowhere else.
#pragma once

#include <type_traits>

#include "../math/half.h"
#include "../kernels.h"
#include "simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace vae_fast {
namespace VF_ISA {

constexpr int kTile = 1024;  // elements: 4 KB of float; a term touches at most nine tiles

#define VF_SIMD _Pragma("omp simd")

/// Up to kTile elements: `rows` rows of `columns` columns, from (row, column). More than one row only if it covers whole rows.
struct Rect {
  int64_t row, column;
  int rows, columns;
  int count() const { return rows * columns; }
};

template <typename I, typename T>
inline void widen_integers(const I* p, int n, T* to) {
  VF_SIMD
  for (int i = 0; i < n; ++i) to[i] = static_cast<T>(p[i]);
}

template <typename T>
inline void widen(const void* from, DType dtype, int64_t at, int n, T* to) {
  switch (dtype) {
    case DType::kFloat: {
      const float* p = static_cast<const float*>(from) + at;
      VF_SIMD
      for (int i = 0; i < n; ++i) to[i] = static_cast<T>(p[i]);
      break;
    }
    case DType::kDouble: {
      const double* p = static_cast<const double*>(from) + at;
      VF_SIMD
      for (int i = 0; i < n; ++i) to[i] = static_cast<T>(p[i]);
      break;
    }
    case DType::kHalf: {
      const uint16_t* p = static_cast<const uint16_t*>(from) + at;
      VF_SIMD
      for (int i = 0; i < n; ++i) to[i] = static_cast<T>(math::from_half(p[i]));
      break;
    }
    case DType::kBFloat16: {
      const uint16_t* p = static_cast<const uint16_t*>(from) + at;
      VF_SIMD
      for (int i = 0; i < n; ++i) to[i] = static_cast<T>(math::from_bfloat16(p[i]));
      break;
    }
    case DType::kUInt8: {
      const uint8_t* p = static_cast<const uint8_t*>(from) + at;
      if constexpr (sizeof(T) == 8) {
        VF_SIMD
        for (int i = 0; i < n; ++i) to[i] = static_cast<T>(p[i]) / T(255);
      } else {
        VF_SIMD
        for (int i = 0; i < n; ++i) to[i] = math::from_uint8(p[i]);
      }
      break;
    }
    case DType::kBool: {
      const uint8_t* p = static_cast<const uint8_t*>(from) + at;
      VF_SIMD
      for (int i = 0; i < n; ++i) to[i] = static_cast<T>(p[i] != 0);
      break;
    }
    case DType::kByte:
      return widen_integers(static_cast<const uint8_t*>(from) + at, n, to);
    case DType::kInt16:
      return widen_integers(static_cast<const int16_t*>(from) + at, n, to);
    case DType::kInt32:
      return widen_integers(static_cast<const int32_t*>(from) + at, n, to);
    case DType::kInt64:
      return widen_integers(static_cast<const int64_t*>(from) + at, n, to);
  }
}

template <typename T>
inline void narrow(const T* from, int n, void* to, DType dtype, int64_t at) {
  switch (dtype) {
    case DType::kFloat: {
      float* p = static_cast<float*>(to) + at;
      VF_SIMD
      for (int i = 0; i < n; ++i) p[i] = static_cast<float>(from[i]);
      break;
    }
    case DType::kDouble: {
      double* p = static_cast<double*>(to) + at;
      VF_SIMD
      for (int i = 0; i < n; ++i) p[i] = static_cast<double>(from[i]);
      break;
    }
    case DType::kHalf: {
      uint16_t* p = static_cast<uint16_t*>(to) + at;
      VF_SIMD
      for (int i = 0; i < n; ++i) p[i] = math::to_half(static_cast<float>(from[i]));
      break;
    }
    case DType::kBFloat16: {
      uint16_t* p = static_cast<uint16_t*>(to) + at;
      VF_SIMD
      for (int i = 0; i < n; ++i) p[i] = math::to_bfloat16(static_cast<float>(from[i]));
      break;
    }
    default:
      break;  // gradients are floating
  }
}

template <typename T>
constexpr DType dtype_of() {
  return sizeof(T) == 8 ? DType::kDouble : DType::kFloat;
}

/// The whole rectangle is one dense run of memory.
inline bool is_run(const Stream& s, const Rect& r, int64_t columns) {
  return s.inner_stride == 1 && (r.rows == 1 || (s.row.dims == 1 && s.row.stride[0] == columns));
}

/// The rectangle as compute values: in place where the tensor already holds them, else converted into `buffer`.
template <typename T>
inline const T* load(const Stream& s, const Rect& r, int64_t columns, T* buffer) {
  if (is_run(s, r, columns)) {
    const int64_t at = s.row(r.row) + r.column;
    if (s.dtype == dtype_of<T>()) return static_cast<const T*>(s.data) + at;
    widen(s.data, s.dtype, at, r.count(), buffer);
    return buffer;
  }
  for (int i = 0; i < r.rows; ++i) {
    const int64_t at = s.row(r.row + i);
    T* out = buffer + i * r.columns;
    if (s.inner_stride == 1) {
      widen(s.data, s.dtype, at + r.column, r.columns, out);
    } else {
      T one{};
      widen(s.data, s.dtype, at, 1, &one);
      VF_SIMD
      for (int j = 0; j < r.columns; ++j) out[j] = one;
    }
  }
  return buffer;
}

/// Elements r .. r + n - 1 of a stream of one column, as compute values: along runs of the innermost dimension, in place where there is but
/// one.
template <typename T>
inline const T* load_elements(const Stream& s, int64_t r, int n, T* buffer) {
  const int inner = s.row.dims - 1;
  const int64_t stride = s.row.stride[inner];
  for (int i = 0; i < n;) {
    const int64_t left = inner == 0 ? n - i : s.row.size[inner] - (r + i) % s.row.size[inner], at = s.row(r + i);
    const int run = static_cast<int>(left < n - i ? left : n - i);
    T* out = buffer + i;
    if (stride == 1) {
      if (run == n && s.dtype == dtype_of<T>()) return static_cast<const T*>(s.data) + at;
      widen(s.data, s.dtype, at, run, out);
    } else if (stride == 0) {
      T one{};
      widen(s.data, s.dtype, at, 1, &one);
      VF_SIMD
      for (int j = 0; j < run; ++j) out[j] = one;
    } else {
      for (int j = 0; j < run; ++j) widen(s.data, s.dtype, at + j * stride, 1, out + j);
    }
    i += run;
  }
  return buffer;
}

/// Where results for the rectangle may be written straight to memory, or null.
template <typename T>
inline T* in_place(const Stream& s, const Rect& r, int64_t columns) {
  if (s.data == nullptr || s.summed || s.dtype != dtype_of<T>() || !is_run(s, r, columns)) return nullptr;
  return static_cast<T*>(s.data) + s.row(r.row) + r.column;
}

template <typename T>
inline void store(const T* from, const Stream& s, const Rect& r, int64_t columns) {
  if (is_run(s, r, columns)) {
    narrow(from, r.count(), s.data, s.dtype, s.row(r.row) + r.column);
    return;
  }
  for (int i = 0; i < r.rows; ++i) {
    narrow(from + i * r.columns, r.columns, s.data, s.dtype, s.row(r.row + i) + r.column);
  }
}

template <typename T>
inline double sum(const T* v, int n);

/// Adds the rectangle to a stream of sums, or begins them with it.
template <typename T>
inline void add(const T* from, const Stream& s, const Rect& r) {
  for (int i = 0; i < r.rows; ++i, from += r.columns) {
    const bool begins = (r.row + i) % s.row.size[1] == 0;
    double* to = static_cast<double*>(s.data) + s.row(r.row + i);
    if (s.inner_stride == 0) {
      *to = (begins && r.column == 0 ? 0.0 : *to) + sum(from, r.columns);
      continue;
    }
    to += r.column;
    if (begins) {
      VF_SIMD
      for (int j = 0; j < r.columns; ++j) to[j] = static_cast<double>(from[j]);
    } else {
      VF_SIMD
      for (int j = 0; j < r.columns; ++j) to[j] += static_cast<double>(from[j]);
    }
  }
}

/// In double, sixteen running sums: one of a thousand equal numbers would round each the same way.
template <typename T>
inline double sum_in_double(const T* v, int n) {
  constexpr int lanes = 16;
  double s[lanes] = {};
  int i = 0;
  for (; i + lanes <= n; i += lanes) {
    VF_SIMD
    for (int k = 0; k < lanes; ++k) s[k] += static_cast<double>(v[i + k]);
  }
  for (int k = 0; i < n; ++i, ++k) s[k] += static_cast<double>(v[i]);
  for (int half = lanes / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) s[k] += s[k + half];
  }
  return s[0];
}

/// The sum of n values in the lanes of several vectors: additions need not wait for one another, and equal numbers, which are all rounded
/// in one direction, are so 16 times in a tile (32 times in vectors of 16 bytes).
template <typename T>
inline double sum_in_lanes(const T* v, int n) {
  if constexpr (sizeof(T) == 8) return sum_in_double(v, n);
  constexpr int width = kWidth<T>, vectors = kManyRegisters ? 4 : 8;
  Vec<T> lanes{};
  int i = 0;
  if (n >= vectors * width) {
    Vec<T> s[vectors] = {};
    for (; i + vectors * width <= n; i += vectors * width) {
#pragma GCC unroll 8
      for (int k = 0; k < vectors; ++k) s[k] += load_vec(v + i + k * width);
    }
#pragma GCC unroll 4
    for (int half = vectors / 2; half > 0; half /= 2) {
#pragma GCC unroll 4
      for (int k = 0; k < half; ++k) s[k] += s[k + half];
    }
    lanes = s[0];
  }
  for (; i + width <= n; i += width) lanes += load_vec(v + i);
  // The remainder of a short row in one masked load: with AVX-512 a third of the time of the loop below at n = 20.
#if VF_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    const __mmask16 rest = static_cast<__mmask16>((1u << (n - i)) - 1u);
    return static_cast<double>(_mm512_reduce_add_ps((__m512)lanes + _mm512_maskz_loadu_ps(rest, v + i)));
  }
#elif VF_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) {
    const __m256i place = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256 all = (__m256)lanes + _mm256_maskload_ps(v + i, _mm256_cmpgt_epi32(_mm256_set1_epi32(n - i), place));
    const __m128 half = _mm256_castps256_ps128(all) + _mm256_extractf128_ps(all, 1), pair = half + _mm_movehl_ps(half, half);
    return static_cast<double>(_mm_cvtss_f32(pair + _mm_movehdup_ps(pair)));
  }
#endif
  T s[width];
  store_vec(s, lanes);
  for (int k = 0; i < n; ++i, ++k) s[k] += v[i];
  for (int half = width / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) s[k] += s[k + half];
  }
  return static_cast<double>(s[0]);
}

/// The sum of n <= kTile values, in their own type unless that is out of its range: then in double, of which it may be a part that others
/// bring back (the mean of a batch, or an infinity of the other sign that a sum of huge numbers is not).
template <typename T>
inline double sum(const T* v, int n) {
  const double s = sum_in_lanes(v, n);
  return sizeof(T) == 8 || s - s == 0.0 ? s : sum_in_double(v, n);
}

constexpr int kSpill = 16;  // how far past its end expand_rows writes

/// out[i, j] = constant * per_row[row of i]: the upstream gradient of every element of the rectangle. Rows are written in whole vectors,
/// each overwriting what the one before spilled.
template <typename T>
inline void expand_rows(const RowGrad& g, const Rect& r, T* out) {
  const T constant = static_cast<T>(g.constant);
  const T* per_row = static_cast<const T*>(g.data);
  if (per_row == nullptr || g.stride == 0 || r.rows == 1) {
    const T v = per_row == nullptr ? constant : constant * per_row[r.row * g.stride];
    const int n = r.count();
    VF_SIMD
    for (int i = 0; i < n; ++i) out[i] = v;
    return;
  }
  if (r.columns == 1) {
    VF_SIMD
    for (int i = 0; i < r.rows; ++i) out[i] = constant * per_row[(r.row + i) * g.stride];
    return;
  }
  static_assert(kWidth<T> <= kSpill, "a row spills less than a vector");
  for (int i = 0; i < r.rows; ++i, out += r.columns) {
    const Vec<T> v = every<T>(constant * per_row[(r.row + i) * g.stride]);
    for (int j = 0; j < r.columns; j += kWidth<T>) store_vec(out + j, v);
  }
}

/// Calls f(n), as a compile-time constant if n is at most 4: the loops over it are then unrolled, and those around them vectorised.
template <class F>
inline void with_short(int n, F&& f) {
  switch (n) {
    case 1:
      return f(std::integral_constant<int, 1>());
    case 2:
      return f(std::integral_constant<int, 2>());
    case 3:
      return f(std::integral_constant<int, 3>());
    case 4:
      return f(std::integral_constant<int, 4>());
    default:
      return f(n);
  }
}

/// to[i] = the sum of v[i * n + j] over j < n, of `count` runs.
template <typename T>
inline void sum_runs(const T* __restrict v, int count, int n, T* __restrict to) {
  with_short(n, [&](auto length) {
    if constexpr (std::is_same_v<decltype(length), int>) {
      for (int i = 0; i < count; ++i) to[i] = static_cast<T>(sum(v + i * length, length));
    } else {  // in double, for the sake of parts that are out of range
      VF_SIMD
      for (int i = 0; i < count; ++i) {
        double s = 0.0;
        for (int j = 0; j < length; ++j) s += static_cast<double>(v[i * length + j]);
        to[i] = static_cast<T>(s);
      }
    }
  });
}

/// Tiles of a term: inputs, values and gradients, in memory or in buffers.
template <typename T>
struct TermTiles {
  const T* in[kMaxTermInputs] = {};
  T* grad[kMaxTermInputs] = {};
  T* value = nullptr;
  // Of sparse counts in[0] has those alone that are not 0: `found` of them, which belong to these places.
  int* place = nullptr;
  int found = 0;
};

/// Calls f with the rectangles that tile rows [r0, r1) and columns [c0, c1) of `columns`: runs of whole short rows, or pieces of one long
/// row.
template <typename F>
inline void for_each_rect(int64_t r0, int64_t r1, int64_t c0, int64_t c1, int64_t columns, F&& f) {
  if (c0 == 0 && c1 == columns && columns <= kTile / 2) {
    if (columns == 0) return;
    const int64_t step = kTile / columns;
    for (int64_t r = r0; r < r1; r += step) {
      f(Rect{r, 0, static_cast<int>(r1 - r < step ? r1 - r : step), static_cast<int>(columns)});
    }
    return;
  }
  for (int64_t r = r0; r < r1; ++r) {
    for (int64_t c = c0; c < c1; c += kTile) f(Rect{r, c, 1, static_cast<int>(c1 - c < kTile ? c1 - c : kTile)});
  }
}

}  // namespace VF_ISA
}  // namespace vae_fast

// Elements in memory and in registers: storage types, vector loads and stores of up to 16 bytes at a time, conversion to and from the
// compute type. The scalar forms take the data type at run time, one branch for a run of elements.
#pragma once

#include "../math/half.h"
#include "launch.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace vae_fast {
namespace cuda {

namespace math = generic::math;

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
struct Byte {  // uint8 (read as x / 255, or as the number it is), or bool
  uint8_t value;
};

template <typename T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <typename T>
using Compute = typename ComputeOf<T>::type;

/// Stands for a data type in kernels that take it at run time, for every stream apart: whatever the streams hold, computed in C.
template <typename C>
struct Any {};
template <typename C>
struct ComputeOf<Any<C>> {
  using type = C;
};
template <typename A>
constexpr bool kIsAny = false;
template <typename C>
constexpr bool kIsAny<Any<C>> = true;

template <typename T>
constexpr DType kDType = DType::kUInt8;
template <>
inline constexpr DType kDType<float> = DType::kFloat;
template <>
inline constexpr DType kDType<double> = DType::kDouble;
template <>
inline constexpr DType kDType<Half> = DType::kHalf;
template <>
inline constexpr DType kDType<BFloat16> = DType::kBFloat16;

/// Whether memory of data type `dtype` can be read as T.
template <typename T>
bool holds(DType dtype) {
  return dtype == kDType<T> || (kDType<T> == DType::kUInt8 && (dtype == DType::kBool || dtype == DType::kByte));
}

/// What a byte stands for is byte * (high + low): x / 255 correctly rounded, in two products.
template <typename C>
struct ByteScale {
  C high, low;

  VF_DEVICE explicit ByteScale(DType dtype) : high(dtype == DType::kUInt8 ? C(1.0 / 255.0) : C(1)), low(C(0)) {
    if (sizeof(C) == 4 && dtype == DType::kUInt8) low = C(1.0 / 255.0 - static_cast<double>(static_cast<float>(1.0 / 255.0)));
  }
  VF_DEVICE C operator()(C byte) const {
#if defined(__CUDA_ARCH__)
    if constexpr (sizeof(C) == 4) return fmaf(byte, high, byte * low);
#endif
    return high == C(1) ? byte : byte / C(255);
  }
};

VF_DEVICE float half_to_float(uint16_t h) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(h));
#else
  return math::from_half(h);
#endif
}
VF_DEVICE uint16_t float_to_half(float f) {
#if defined(__CUDA_ARCH__)
  return __half_as_ushort(__float2half_rn(f));
#else
  return math::to_half(f);
#endif
}
VF_DEVICE uint16_t float_to_bfloat16(float f) {
#if defined(__CUDA_ARCH__)
  return __bfloat16_as_ushort(__float2bfloat16_rn(f));
#else
  return math::to_bfloat16(f);
#endif
}

/// Two floats as two 16-bit values in one word, one instruction on the device.
template <typename T>
VF_DEVICE uint32_t pack_pair(float low, float high);
template <>
VF_DEVICE uint32_t pack_pair<Half>(float low, float high) {
#if defined(__CUDA_ARCH__)
  return math::bits_to<uint32_t>(__floats2half2_rn(low, high));
#else
  return math::to_half(low) | static_cast<uint32_t>(math::to_half(high)) << 16;
#endif
}
template <>
VF_DEVICE uint32_t pack_pair<BFloat16>(float low, float high) {
#if defined(__CUDA_ARCH__)
  return math::bits_to<uint32_t>(__floats2bfloat162_rn(low, high));
#else
  return math::to_bfloat16(low) | static_cast<uint32_t>(math::to_bfloat16(high)) << 16;
#endif
}

/// Byte j of a word.
template <typename C>
VF_DEVICE C byte_of(uint32_t word, int j) {
#if defined(__CUDA_ARCH__)
  // 0x4b0000bb is the float 2^23 + bb: a byte permutation and a sum, off the slow conversion unit
  if constexpr (sizeof(C) == 4) return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440 + j)) - 8388608.0f;
#endif
  return static_cast<C>(word >> (8 * j) & 0xffu);
}

/// N elements of T as they lie in memory.
template <typename T, int N>
struct Packed {
  static constexpr int kBytes = static_cast<int>(sizeof(T)) * N;
  static constexpr int kAccess = kBytes < 16 ? kBytes : 16;  // bytes of one access, and the alignment it needs
  uint32_t w[(kBytes + 3) / 4];
};

#if defined(__CUDACC__)
template <int kBytes>
VF_DEVICE void read_words(const void* p, uint32_t* w) {
  if constexpr (kBytes >= 16) {
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i) {
      const uint4 v = static_cast<const uint4*>(p)[i];
      w[4 * i] = v.x, w[4 * i + 1] = v.y, w[4 * i + 2] = v.z, w[4 * i + 3] = v.w;
    }
  } else if constexpr (kBytes == 8) {
    const uint2 v = *static_cast<const uint2*>(p);
    w[0] = v.x, w[1] = v.y;
  } else if constexpr (kBytes == 4) {
    w[0] = *static_cast<const uint32_t*>(p);
  } else {
    static_assert(kBytes == 2, "no such access");
    w[0] = *static_cast<const uint16_t*>(p);
  }
}
template <int kBytes>
VF_DEVICE void write_words(void* p, const uint32_t* w) {
  if constexpr (kBytes >= 16) {
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i) {
      static_cast<uint4*>(p)[i] = make_uint4(w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3]);
    }
  } else {
    static_assert(kBytes == 8, "no such access");
    *static_cast<uint2*>(p) = make_uint2(w[0], w[1]);
  }
}
#else
template <int kBytes>
inline void read_words(const void* p, uint32_t* w) {
  vf_shim::check_aligned(p, kBytes < 16 ? kBytes : 16);
  memcpy(w, p, kBytes);
}
template <int kBytes>
inline void write_words(void* p, const uint32_t* w) {
  vf_shim::check_aligned(p, kBytes < 16 ? kBytes : 16);
  memcpy(p, w, kBytes);
}
#endif

template <typename T, int N>
VF_DEVICE void load(const T* p, Packed<T, N>& to) {
  read_words<Packed<T, N>::kBytes>(p, to.w);
}

/// The one element at p, N times.
template <typename T, int N>
VF_DEVICE void splat(const T* p, Packed<T, N>& to) {
  uint32_t w[2];
  if constexpr (sizeof(T) == 8) {
    const uint64_t bits = math::bits_to<uint64_t>(*p);
    w[0] = static_cast<uint32_t>(bits), w[1] = static_cast<uint32_t>(bits >> 32);
  } else if constexpr (sizeof(T) == 4) {
    w[0] = w[1] = math::bits_to<uint32_t>(*p);
  } else if constexpr (sizeof(T) == 2) {
    w[0] = w[1] = math::bits_to<uint16_t>(*p) * 0x10001u;
  } else {
    w[0] = w[1] = math::bits_to<uint8_t>(*p) * 0x1010101u;
  }
#pragma unroll
  for (int i = 0; i < (Packed<T, N>::kBytes + 3) / 4; ++i) to.w[i] = w[i % 2];
}

/// Element i of what was loaded, in the compute type.
template <typename T, int N, typename C>
VF_DEVICE C unpack(const Packed<T, N>& from, int i, const ByteScale<C>& scale) {
  if constexpr (sizeof(T) == 8) {
    return math::bits_to<T>(from.w[2 * i] | static_cast<uint64_t>(from.w[2 * i + 1]) << 32);
  } else if constexpr (sizeof(T) == 4) {
    return math::bits_to<T>(from.w[i]);
  } else if constexpr (sizeof(T) == 1) {
    return scale(byte_of<C>(from.w[i / 4], i % 4));
  } else if constexpr (kDType<T> == DType::kBFloat16) {
    return math::bits_to<float>(i % 2 == 0 ? from.w[i / 2] << 16 : from.w[i / 2] & 0xffff0000u);
  } else {
    return half_to_float(static_cast<uint16_t>(from.w[i / 2] >> (16 * (i % 2))));
  }
}
/// ... of a floating type.
template <typename C, typename T, int N>
VF_DEVICE C unpack(const Packed<T, N>& from, int i) {
  return unpack(from, i, ByteScale<C>(DType::kBool));
}

/// Elements i and i + 1, i even, from compute values.
template <typename T, int N, typename C>
VF_DEVICE void pack(Packed<T, N>& to, int i, C first, C second) {
  static_assert(sizeof(T) > 1, "gradients are floating");
  if constexpr (sizeof(T) == 8) {
    const uint64_t a = math::bits_to<uint64_t>(first), b = math::bits_to<uint64_t>(second);
    to.w[2 * i] = static_cast<uint32_t>(a), to.w[2 * i + 1] = static_cast<uint32_t>(a >> 32);
    to.w[2 * i + 2] = static_cast<uint32_t>(b), to.w[2 * i + 3] = static_cast<uint32_t>(b >> 32);
  } else if constexpr (sizeof(T) == 4) {
    to.w[i] = math::bits_to<uint32_t>(first), to.w[i + 1] = math::bits_to<uint32_t>(second);
  } else {
    to.w[i / 2] = pack_pair<T>(first, second);
  }
}

template <typename T, int N>
VF_DEVICE void store(T* p, const Packed<T, N>& from) {
  write_words<Packed<T, N>::kBytes>(p, from.w);
}

/// Writes N compute values as T.
template <typename T, int N, typename C>
VF_DEVICE void store(T* p, const C (&v)[N]) {
  Packed<T, N> to;
#pragma unroll
  for (int i = 0; i < N; i += 2) pack(to, i, v[i], v[i + 1]);
  store(p, to);
}

VF_DEVICE int size_of(DType dtype) {
  return dtype == DType::kFloat ? 4 : dtype == DType::kDouble ? 8 : dtype == DType::kHalf || dtype == DType::kBFloat16 ? 2 : 1;
}

/// a / b, neither negative, by a division of 32 bits wherever that is enough.
VF_DEVICE int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<int64_t>(static_cast<uint32_t>(a) / static_cast<uint32_t>(b));
  return a / b;
}

/// Where a row of `s` begins: RowIndex.
VF_DEVICE char* row_start(const Stream& s, int64_t row) {
  int64_t offset = 0;
#pragma unroll 1
  for (int d = s.row.dims - 1; d > 0; --d) {
    const int64_t size = s.row.size[d], above = quotient(row, size);
    offset += (row - above * size) * s.row.stride[d];
    row = above;
  }
  offset += row * s.row.stride[0];
  return static_cast<char*>(s.data) + offset * size_of(s.dtype);
}

/// v[e] = element at + e * step of `data`, for from <= e < to; the rest of v is 0.
template <int N, typename C>
VF_DEVICE void load_any(const void* data, DType dtype, int64_t at, int64_t step, int from, int to, C* v) {
#pragma unroll
  for (int e = 0; e < N; ++e) v[e] = C(0);
  switch (dtype) {
    case DType::kFloat: {
      const float* p = static_cast<const float*>(data) + at;
#pragma unroll
      for (int e = 0; e < N; ++e) {
        if (e >= from && e < to) v[e] = static_cast<C>(p[e * step]);
      }
      break;
    }
    case DType::kDouble:
      if constexpr (sizeof(C) == 8) {
        const double* p = static_cast<const double*>(data) + at;
#pragma unroll
        for (int e = 0; e < N; ++e) {
          if (e >= from && e < to) v[e] = p[e * step];
        }
      }
      break;
    case DType::kHalf: {
      const uint16_t* p = static_cast<const uint16_t*>(data) + at;
#pragma unroll
      for (int e = 0; e < N; ++e) {
        if (e >= from && e < to) v[e] = static_cast<C>(half_to_float(p[e * step]));
      }
      break;
    }
    case DType::kBFloat16: {
      const uint16_t* p = static_cast<const uint16_t*>(data) + at;
#pragma unroll
      for (int e = 0; e < N; ++e) {
        if (e >= from && e < to) v[e] = static_cast<C>(math::from_bfloat16(p[e * step]));
      }
      break;
    }
    default: {
      const uint8_t* p = static_cast<const uint8_t*>(data) + at;
      const ByteScale<C> scale(dtype);
#pragma unroll
      for (int e = 0; e < N; ++e) {
        if (e >= from && e < to) v[e] = scale(static_cast<C>(p[e * step]));
      }
    }
  }
}

/// Element at + e * step of `data` = v[e], for from <= e < to.
template <int N, typename C>
VF_DEVICE void store_any(void* data, DType dtype, int64_t at, int64_t step, int from, int to, const C* v) {
  switch (dtype) {
    case DType::kFloat: {
      float* p = static_cast<float*>(data) + at;
#pragma unroll
      for (int e = 0; e < N; ++e) {
        if (e >= from && e < to) p[e * step] = static_cast<float>(v[e]);
      }
      break;
    }
    case DType::kDouble:
      if constexpr (sizeof(C) == 8) {
        double* p = static_cast<double*>(data) + at;
#pragma unroll
        for (int e = 0; e < N; ++e) {
          if (e >= from && e < to) p[e * step] = v[e];
        }
      }
      break;
    case DType::kHalf: {
      uint16_t* p = static_cast<uint16_t*>(data) + at;
#pragma unroll
      for (int e = 0; e < N; ++e) {
        if (e >= from && e < to) p[e * step] = float_to_half(static_cast<float>(v[e]));
      }
      break;
    }
    default: {
      uint16_t* p = static_cast<uint16_t*>(data) + at;
#pragma unroll
      for (int e = 0; e < N; ++e) {
        if (e >= from && e < to) p[e * step] = float_to_bfloat16(static_cast<float>(v[e]));
      }
    }
  }
}

/// Whether every row of `s` starts at a multiple of `elements` elements from an address aligned to `bytes`, so that vectors can be moved; a
/// value broadcast over the row always can be read.
inline bool rows_aligned(const Stream& s, int elements, int bytes) {
  if (s.inner_stride == 0) return true;
  if (reinterpret_cast<uintptr_t>(s.data) % static_cast<uintptr_t>(bytes) != 0) return false;
  for (int d = 0; d < s.row.dims; ++d) {
    const bool single = s.row.dims > 1 && s.row.size[d] <= 1;
    if (!single && s.row.stride[d] % elements != 0) return false;
  }
  return true;
}

template <typename T, int N>
bool vector_access(const Stream& s) {
  return holds<T>(s.dtype) && rows_aligned(s, N, Packed<T, N>::kAccess);
}

/// The upstream gradient of a row.
template <typename C>
VF_DEVICE C upstream_of(const RowGrad& grad, int64_t row) {
  return static_cast<C>(grad.constant) * (grad.data == nullptr ? C(1) : static_cast<const C*>(grad.data)[row * grad.stride]);
}

}  // namespace cuda
}  // namespace vae_fast

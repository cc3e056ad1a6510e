// float16 and bfloat16 to float and back (round to nearest even) in integer arithmetic that vectorises on every instruction set.
#pragma once

#include "portable.h"

VF_MATH_BEGIN

VF_INLINE float from_bfloat16(uint16_t h) { return bits_to<float>(static_cast<uint32_t>(h) << 16); }

VF_INLINE uint16_t to_bfloat16(float f) {
  const uint32_t u = bits_to<uint32_t>(f);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const uint32_t nan = (u >> 16) | 0x40u;
  return static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

VF_INLINE float from_half(uint16_t h) {
  // The exponent bias differs by 112: a product with 2^112 rebiases normal and subnormal halves alike.
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fff) << 13;
  const float finite = bits_to<float>(magnitude) * 5.19229686e33f;
  const uint32_t special = magnitude | 0x7f800000u;  // exponent 31: infinity or NaN
  const uint32_t bits = (h & 0x7c00) == 0x7c00 ? special : bits_to<uint32_t>(finite);
  return bits_to<float>(bits | static_cast<uint32_t>(h & 0x8000) << 16);
}

VF_INLINE uint16_t to_half(float f) {
  const uint32_t u = bits_to<uint32_t>(f), sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  // Subnormal result: adding 1/2 puts the rounded units of 2^-24 into the low bits.
  const uint32_t subnormal = bits_to<uint32_t>(bits_to<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t overflow = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return static_cast<uint16_t>(sign | (magnitude >= 0x477ff000u ? overflow : finite));
}

/// Whether products with v are exact, short of the ends of the range.
VF_INLINE bool is_power_of_two(float v) {
  const uint32_t u = bits_to<uint32_t>(v), exponent = (u >> 23) & 0xffu;
  return (u & 0x007fffffu) == 0u && exponent != 0u && exponent != 0xffu;
}
VF_INLINE bool is_power_of_two(double v) {
  const uint64_t u = bits_to<uint64_t>(v), exponent = (u >> 52) & 0x7ffu;
  return (u & 0x000fffffffffffffu) == 0u && exponent != 0u && exponent != 0x7ffu;
}

/// x / 255, correctly rounded, by a product and one correction.
VF_INLINE float from_uint8(uint8_t x) {
  const float v = static_cast<float>(x);
#if defined(__CUDA_ARCH__) || defined(VF_FMA)
  const float q = v * 0.00392156886f;
  return fma(fma(-255.0f, q, v), 0.00392156886f, q);
#else
  return v / 255.0f;
#endif
}

VF_MATH_END

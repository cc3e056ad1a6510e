// How fast fused multiply-adds run when nothing else is in the way: the limit that benchmarks hold arithmetic against.
#pragma once

#include "simd.h"

namespace vae_fast {
namespace VF_ISA {

/// `iterations` rounds of independent multiply-adds in registers; adds their sum to *sink. Returns the floating-point operations done.
inline double fma_probe(int64_t iterations, float* sink) {
  constexpr int chains = kManyRegisters ? 24 : 12;  // more than latency times units, fewer than registers
  Vec<float> sum[chains];
#pragma GCC unroll 32
  for (int c = 0; c < chains; ++c) sum[c] = every(static_cast<float>(c));
  Vec<float> by = every(0.5f), plus = every(0.25f);
  __asm__ volatile("" : "+m"(by), "+m"(plus));  // not constants
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 32
    for (int c = 0; c < chains; ++c) sum[c] = madd(sum[c], by, plus);
  }
  Vec<float> total{};
#pragma GCC unroll 32
  for (int c = 0; c < chains; ++c) total += sum[c];
  for (int i = 0; i < kWidth<float>; ++i) *sink += total[i];
  return 2.0 * static_cast<double>(iterations) * chains * kWidth<float>;
}

}  // namespace VF_ISA
}  // namespace vae_fast

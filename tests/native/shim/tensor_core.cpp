// Tensor cores on the CPU: what one instruction does to a warp's fragments, with arithmetic no better than the hardware's.
#include <cmath>

#include "cuda_shim.h"

namespace vf_shim {

namespace {

uint64_t bits_of(double v) {
  uint64_t bits;
  std::memcpy(&bits, &v, sizeof(v));
  return bits;
}

/// 2^e, for e that is in the range of normal doubles.
double power_of_two(int e) {
  const uint64_t bits = static_cast<uint64_t>(e + 1023) << 52;
  double v;
  std::memcpy(&v, &bits, sizeof(v));
  return v;
}

int exponent_of(double v) { return static_cast<int>(bits_of(v) >> 52 & 0x7ff) - 1023; }

/// v without what lies below `unit`, a power of two.
double cut(double v, double unit) { return std::trunc(v / unit) * unit; }

/// c + sum a b of four products: exact products, all aligned to the largest addend and cut off at its 24 bits, and so is the sum. Hardware
/// has been found to keep a few bits more.
float block_sum(float c, const double (&products)[4]) {
  double largest = std::fabs(static_cast<double>(c)), plain = static_cast<double>(c);
  bool any = false;
  for (const double p : products) {
    largest = std::fmax(largest, std::fabs(p)), plain += p;
    any = any || p != 0.0;
  }
  if (!any || !std::isfinite(plain)) return static_cast<float>(plain);
  const double unit = power_of_two(exponent_of(largest) - 23);
  double sum = cut(static_cast<double>(c), unit);
  for (const double p : products) sum += cut(p, unit);
  return sum == 0.0 ? 0.0f : static_cast<float>(cut(sum, power_of_two(exponent_of(sum) - 23)));
}

void require_tf32(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof(v));
  if ((bits & 0x1fffu) != 0 && !std::isnan(v)) fail("an operand of a tensor core that is not a TF32 number");
}

}  // namespace

float to_tf32(float v) {
  if (!std::isfinite(v)) return v;
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof(v));
  bits = (bits + 0x1000u) & ~0x1fffu;
  std::memcpy(&v, &bits, sizeof(v));
  return v;
}

void multiply_add_tf32(float (&sum)[4], const float (&a)[4], float b0, float b1) {
  struct Operands {
    float a[4], b[2];
  };
  Operands mine{{a[0], a[1], a[2], a[3]}, {b0, b1}}, all[32];
  for (const float v : {a[0], a[1], a[2], a[3], b0, b1}) require_tf32(v);
  gather(&mine, sizeof(mine), all);
  const unsigned lane = current.thread.x % 32, group = lane / 4, quad = lane % 4;
  for (unsigned e = 0; e < 4; ++e) {
    const unsigned lower = e / 2, column = 2 * quad + e % 2;  // row group + 8 lower of the sum
    for (unsigned half = 0; half < 2; ++half) {
      double products[4];
      for (unsigned k = 0; k < 4; ++k)
        products[k] = static_cast<double>(all[4 * group + k].a[lower + 2 * half]) * static_cast<double>(all[4 * column + k].b[half]);
      sum[e] = block_sum(sum[e], products);
    }
  }
}

}  // namespace vf_shim

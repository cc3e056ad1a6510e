// The generator against its published vectors, and its normals against their definition in double.
#include "../../csrc/math/philox.h"

#include <algorithm>
#include <vector>

#include "check.h"
#include "implementations.h"
#include "reference.h"

namespace native {

namespace math = vae_fast::generic::math;

void check_philox() {
  // kat_vectors of Random123 (Salmon et al.) for philox4x32-10: counter, key, result. The kernels' counter is (offset / 4, block), whose
  // lower half stays below 2^62, so they meet the first vector directly and the others through the reference, with which they must agree
  // everywhere.
  struct Vector {
    uint32_t counter[4], key[2], want[4];
  };
  const Vector vectors[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (const Vector& v : vectors) {
    uint32_t words[4];
    philox_rounds(v.counter, v.key, words);
    tally.check(std::equal(words, words + 4, v.want), "philox known answer, reference");
  }
  tally.check(std::equal(vectors[0].want, vectors[0].want + 4, math::philox(0, 0, 0).w), "philox known answer");
  Random random(5);
  bool same = true;
  double worst = 0.0, mean = 0.0, square = 0.0, fourth = 0.0;
  constexpr int kDraws = 400000;
  for (int i = 0; i < kDraws / 4; ++i) {
    const uint64_t seed = random.engine(), offset = random.engine() & ~3ull,
                   block = random.coin() ? random.engine() : random.engine() % 1000;
    const math::PhiloxBlock got = math::philox(seed, offset, block);
    uint32_t words[4];
    philox_words(seed, offset, block, words);
    same = same && std::equal(got.w, got.w + 4, words);
    float z[4];
    math::normal4(seed, offset, block, z[0], z[1], z[2], z[3]);
    for (unsigned k = 0; k < 4; ++k) {
      const double want = block < uint64_t{1} << 60 ? normal_of(seed, offset, block * 4 + k) : static_cast<double>(z[k]);
      worst = std::max(worst, std::fabs(static_cast<double>(z[k]) - want));
      mean += want, square += want * want, fourth += want * want * want * want;
    }
  }
  tally.check(same, "philox words differ from the reference");
  tally.check(worst < 3e-6, text("normals are off by %.3g", worst));
  // Moments of N(0, 1), each within five standard errors.
  const double n = kDraws, error = 5.0 / std::sqrt(n);
  tally.check(std::fabs(mean / n) < error, text("mean %.4g", mean / n));
  tally.check(std::fabs(square / n - 1.0) < error * std::sqrt(2.0), text("variance %.5g", square / n));
  tally.check(std::fabs(fourth / n - 3.0) < error * std::sqrt(96.0), text("fourth moment %.5g", fourth / n));
  // The ends of both uniforms: finite, and no larger than the definition allows.
  for (const uint32_t w0 : {0u, 1u, 0x7fffffffu, 0x80000000u, 0xffffffffu}) {
    for (const uint32_t w1 : {0u, 1u, 0x1fffffffu, 0x20000000u, 0x3fffffffu, 0x40000000u, 0x80000000u, 0xdfffffffu, 0xffffffffu}) {
      float a, b;
      math::box_muller(w0, w1, a, b);
      tally.check(std::isfinite(a) && std::isfinite(b) && std::fabs(a) < 6.7f && std::fabs(b) < 6.7f, text("normals of %08x %08x", w0, w1));
    }
  }
}

}  // namespace native

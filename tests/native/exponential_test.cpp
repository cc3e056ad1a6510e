// e^-|a| from a device's 2^t: every 16-bit number and many floats, with a power that is as far off as it may be.
#include <cmath>

#include "../../csrc/math/elementary.h"
#include "../../csrc/math/half.h"
#include "check.h"
#include "implementations.h"

namespace native {

namespace {

namespace math = vae_fast::generic::math;

constexpr double kUlp = 0x1p-23;

/// 2^t as ex2.approx.ftz.f32 may give it: off by so many ulp, and 0 where it is no longer a normal number.
float power(float t, double ulps) {
  const double exact = std::exp2(static_cast<double>(t));
  return exact < 0x1p-126 ? 0.0f : static_cast<float>(exact * (1.0 + ulps * kUlp));
}

/// The relative error at a, in ulp of 2^-23; what is no longer a normal number may be 0.
double error_at(float a, double ulps) {
  const double want = std::exp(-std::fabs(static_cast<double>(a)));
  const float got = math::exp_minus_abs_by([&](float t) { return power(t, ulps); }, a);
  if (want < 0x1.0001p-126) return got >= 0.0f && got <= 0x1.01p-126f ? 0.0 : 1e30;
  return std::fabs(got - want) / want / kUlp;
}

}  // namespace

void check_exponential() {
  for (const double ulps : {-2.0, 0.0, 2.0}) {
    double worst[3] = {};
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
      const float values[2] = {math::from_bfloat16(static_cast<uint16_t>(bits)), math::from_half(static_cast<uint16_t>(bits))};
      for (int i = 0; i < 2; ++i) {
        if (!std::isnan(values[i])) worst[i] = std::fmax(worst[i], error_at(values[i], ulps));
      }
    }
    for (uint32_t i = 0; i < 1000000; ++i) worst[2] = std::fmax(worst[2], error_at(static_cast<float>(i) * 8.8e-5f, ulps));
    const char* const names[3] = {"bfloat16", "float16", "float"};
    for (int i = 0; i < 3; ++i) {
      tally.check(worst[i] <= std::fabs(ulps) + 1.0,
                  text("exponential of %s: %.3f ulp off from a power %.0f off", names[i], worst[i], ulps));
    }
  }
  const auto exact = [](float t) { return power(t, 0.0); };
  tally.check(std::isnan(math::exp_minus_abs_by(exact, std::nanf(""))), "exponential of NaN");
  tally.check(math::exp_minus_abs_by(exact, 0.0f) == 1.0f, "exponential of 0");
}

}  // namespace native

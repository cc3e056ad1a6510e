// lgamma, digamma and their differences against long double, over 1e-8 .. 1e8.
#include <cmath>

#include "../../csrc/math/gamma.h"
#include "check.h"
#include "implementations.h"

namespace native {

namespace {

namespace math = vae_fast::generic::math;

/// By the recurrence up to z >= 30 and the asymptotic series (DLMF 5.11.2), whose next term is below 1e-20 there.
long double digamma_long(long double z) {
  long double shift = 0.0L;
  for (; z < 30.0L; z += 1.0L) shift += 1.0L / z;
  const long double w = 1.0L / (z * z);
  const long double series =
      w * (1.0L / 12 -
           w * (1.0L / 120 -
                w * (1.0L / 252 - w * (1.0L / 240 - w * (1.0L / 132 - w * (691.0L / 32760 - w * (1.0L / 12 - w * (3617.0L / 8160))))))));
  return std::log(z) - 0.5L / z - series - shift;
}

/// Over an integer the product z (z + 1) ... (z + x - 1); else the difference, of which long double keeps enough digits where it is asked.
long double lgamma_difference_long(long double z, long double x) {
  if (x == std::floor(x) && x <= 4096.0L) {  // the product
    long double sum = 0.0L;
    for (long double i = 0.0L; i < x; i += 1.0L) sum += std::log(z + i);
    return sum;
  }
  return std::lgamma(z + x) - std::lgamma(z);
}
long double digamma_difference_long(long double z, long double x) {
  if (x == std::floor(x) && x <= 4096.0L) {
    long double sum = 0.0L;
    for (long double i = 0.0L; i < x; i += 1.0L) sum += 1.0L / (z + i);
    return sum;
  }
  return digamma_long(z + x) - digamma_long(z);
}

struct Worst {
  const char* name;
  double allowed, error = 0.0, at = 0.0, second = 0.0;

  void see(double got, long double want, double scale, double z, double x = 0.0) {
    const double off = std::fabs(static_cast<double>(static_cast<long double>(got) - want)) / scale;
    if (!(off <= error)) error = off, at = z, second = x;
  }
  void report() const { tally.check(error <= allowed, text("%s: error %.3g at %.9g, %.9g", name, error, at, second)); }
};

double at_least_one(long double want) { return std::fmax(1.0, static_cast<double>(std::fabs(want))); }

template <typename T>
void check_type(const char* type, double unit) {
  const std::string names[] = {std::string("lgamma ") + type, std::string("digamma ") + type, std::string("lgamma difference ") + type,
                               std::string("digamma difference ") + type};
  Worst value{names[0].c_str(), 5.0 * unit}, slope{names[1].c_str(), 5.0 * unit};
  const auto see = [&](double given) {
    const T z = static_cast<T>(given);
    const long double exact = static_cast<long double>(z);
    value.see(static_cast<double>(math::lgamma(z)), std::lgamma(exact), at_least_one(std::lgamma(exact)), given);
    slope.see(static_cast<double>(math::digamma(z)), digamma_long(exact), at_least_one(digamma_long(exact)), given);
  };
  for (int i = -8000; i <= 8000; ++i) see(std::pow(10.0, i / 1000.0));
  for (int i = 1; i < 16000; ++i) see(i / 4000.0);  // around the zeros: 1, 2 and 1.4616
  value.report();
  slope.report();

  // Differences: relative to themselves, however far below the two that are subtracted they lie; below 1 one part is log z.
  Worst difference{names[2].c_str(), 8.0 * unit}, difference_slope{names[3].c_str(), 8.0 * unit};
  for (int i = -80; i <= 80; ++i) {
    const T z = static_cast<T>(std::pow(10.0, i / 10.0));
    for (const double given : {0.5, 1.0, 2.0, 3.0, 7.0, 100.0, 4096.0, 1e6}) {
      const T x = static_cast<T>(given);
      const math::GammaDifference<T> got(z, x);
      const long double exact = static_cast<long double>(z);
      if (sizeof(T) == 8 && (given == 0.5 || given > 4096.0) && z > T(30)) continue;  // long double itself has no such digits
      const long double want = lgamma_difference_long(exact, given), want_slope = digamma_difference_long(exact, given);
      const double size = std::fmax(at_least_one(want), z < T(1) ? -std::log(static_cast<double>(z)) : 0.0);
      difference.see(static_cast<double>(got.value), want, size, static_cast<double>(z), given);
      difference_slope.see(static_cast<double>(got.slope), want_slope, static_cast<double>(want_slope), static_cast<double>(z), given);
    }
    const math::GammaDifference<T> none(z, T(0));
    tally.check(none.value == T(0) && none.slope == T(0), text("difference over 0 at %.9g", static_cast<double>(z)));
  }
  difference.report();
  difference_slope.report();

  const T inf = math::infinity<T>();
  tally.check(math::lgamma(T(0)) == inf && math::lgamma(inf) == inf && math::digamma(T(0)) == -inf && math::digamma(inf) == inf,
              text("gamma %s: at 0 and infinity", type));
  tally.check(std::isnan(math::lgamma(T(-1))) && std::isnan(math::digamma(T(-1))) && std::isnan(math::lgamma(inf - inf)) &&
                  std::isnan(math::digamma(inf - inf)),
              text("gamma %s: NaN", type));
}

}  // namespace

void check_gamma() {
  check_type<float>("float", 0x1p-24);
  check_type<double>("double", 0x1p-53);
}

}  // namespace native

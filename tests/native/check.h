// Counting checks: a failed one says where and why, and the run goes on.
#pragma once

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <string>

struct Tally {
  long passed = 0, failed = 0;
  static constexpr long kMostShown = 400;

  bool check(bool ok, const std::string& what) {
    if (ok) {
      ++passed;
    } else if (++failed <= kMostShown) {
      std::fprintf(stderr, "FAILED %s\n", what.c_str());
    }
    return ok;
  }
};
inline Tally tally;

__attribute__((format(printf, 1, 2))) inline std::string text(const char* format, ...) {
  char line[512];
  va_list args;
  va_start(args, format);
  std::vsnprintf(line, sizeof(line), format, args);
  va_end(args);
  return line;
}

/// got is want to within tolerance; two NaNs, or two equal infinities, agree.
inline bool close(double got, double want, double tolerance) {
  if (std::isnan(want)) return std::isnan(got);
  if (std::isinf(want)) return got == want;
  return std::fabs(got - want) <= tolerance;
}

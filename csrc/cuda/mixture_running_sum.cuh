// The online log-sum-exp of densities: in the compute type throughout, where LogSum adds up in double, for the loops that arithmetic
// bounds.
#pragma once

#include "../math/mixture.h"
#include "launch.h"

namespace vae_fast {
namespace cuda {

namespace math = generic::math;

/// sum e^l so far, relative to the largest l. NaN is in `total` alone.
template <typename C>
struct RunningSum {
  C shift, total;

  VF_DEVICE static RunningSum zero() { return {-math::infinity<C>(), C(0)}; }
  /// What shift is where it is finite: e^(l - that) is 0, not NaN, where every l is -infinity.
  VF_DEVICE static C finite(C shift) { return shift == -math::infinity<C>() ? C(0) : shift; }

  /// Adds e^(l[j]), where exponent(j, shift) is l[j] - shift, to full precision wherever l itself may not be.
  template <int N, typename Exponent>
  VF_DEVICE void add(const C (&l)[N], Exponent&& exponent) {
    C above = shift;
#pragma unroll
    for (int j = 0; j < N; ++j) above = l[j] > above ? l[j] : above;
    const C to = finite(above);
    C part = C(0);
#pragma unroll
    for (int j = 0; j < N; ++j) part += math::exp(exponent(j, to));
    total = above > shift ? math::fma(total, math::exp(shift - above), part) : total + part;
    shift = above;
  }
  VF_DEVICE void add(C l) {
    const C one[1] = {l};
    add(one, [&](int, C from) { return l - from; });
  }
  VF_DEVICE void add(const RunningSum& other) {
    const C above = other.shift > shift ? other.shift : shift, to = finite(above);
    total = total * math::exp(shift - to) + other.total * math::exp(other.shift - to);
    shift = above;
  }
};

}  // namespace cuda
}  // namespace vae_fast

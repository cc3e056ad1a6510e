// Row sums of the Bernoulli log-likelihood over logits, in float: with c = 1 for a >= 0, else 0,
//
//   value = (x - c) a - log(1 + e),  e = e^-|a|,   d/da = (x - c) + sign(a) e / (1 + e)
//
// which is what math/bernoulli.h computes element by element. In a sum the logarithms are one: sum log(1 + e_i) = log prod (1 + e_i), and
// Q = prod (1 + e_i) - 1 grows by Q <- Q (1 + e) + e, one multiply-add, which keeps its relative accuracy however small the e_i are. That
// and the machine's own reciprocal and scaling by powers of two leave half of the instructions, which is what bounds a processor with two
// ports for wide vectors.
#pragma once

#include "../math/bernoulli.h"
#include "simd.h"
#include "tile.h"

namespace vae_fast {
namespace VF_ISA {

constexpr int kRowLoopColumns = 48;  // shorter rows are better off as one tile: the logarithm at a row's end costs as much as two vectors

using Floats = Vec<float>;
using Ints = Vec<int32_t>;
using Words = Vec<uint32_t>;  // in which sums wrap

VF_INLINE Ints every_int(int32_t x) { return x - Ints{}; }
/// The bits of a that mask marks, and those of b elsewhere.
VF_INLINE Floats bits_where(Ints mask, Floats a, Floats b) { return (Floats)((mask & (Ints)a) | (~mask & (Ints)b)); }

/// |a|, or 128 where that is less: e^-128 is 0 in float, and beyond 2^127 the product with 1 / log 2 would overflow. NaN stays.
VF_INLINE Floats magnitude(Floats a) {
  const Floats t = (Floats)((Ints)a & every_int(INT32_MAX));
#if VF_VECTOR_BYTES == 64
  return (Floats)_mm512_min_ps(_mm512_set1_ps(128.0f), (__m512)t);  // the second operand, if one is NaN
#else
  return t;  // times_power drops what does not count
#endif
}

/// p 2^k for integers k of any size below 1, 0 where that is no normal number (or not far below one).
VF_INLINE Floats times_power(Floats p, Floats k, Floats k_shifted) {
#if VF_VECTOR_BYTES == 64
  (void)k_shifted;
  return (Floats)_mm512_scalef_ps((__m512)p, (__m512)k);
#else
  const Floats scaled = (Floats)((Words)p + ((Words)k_shifted << 23));
  return (Floats)((Ints)scaled & (Ints)(k > every(-126.0f)));
#endif
}

/// e / b to 1 ulp for b in [1, 2].
VF_INLINE Floats quotient(Floats e, Floats b) {
#if VF_VECTOR_BYTES == 64
  const Floats r = (Floats)_mm512_rcp14_ps((__m512)b);  // to 2^-14: one step of Newton's method doubles the digits
  const Floats q = e * r;
  return madd(madd(-q, b, e), r, q);
#else
  return e / b;
#endif
}

/// x for negative a, else x - 1.
VF_INLINE Floats less_step(Floats x, Floats a) {
#if VF_VECTOR_BYTES == 64
  const __mmask16 positive = _mm512_testn_epi32_mask((__m512i)a, _mm512_set1_epi32(INT32_MIN));
  return (Floats)_mm512_mask_sub_ps((__m512)x, positive, (__m512)x, _mm512_set1_ps(1.0f));
#else
  return x - (Floats)(~((Ints)a >> 31) & (Ints)every(1.0f));
#endif
}

/// s >= 0 with the sign of a.
VF_INLINE Floats signed_as(Floats s, Floats a) {
#if VF_VECTOR_BYTES == 64
  return (Floats)_mm512_ternarylogic_epi32((__m512i)s, (__m512i)a, _mm512_set1_epi32(INT32_MIN), 0xf8);  // s | (a & sign)
#else
  return (Floats)((Ints)s | ((Ints)a & every_int(INT32_MIN)));
#endif
}

constexpr int kFactors = 64;  // of a product: each is at most 2, so that it stays below 2^65

/// Two running sums of a row, in lanes: (x - c) a, and prod (1 + e) - 1.
struct LogitsSums {
  Floats linear{}, product{};

  /// Adds a vector of elements; with gradients > 0 that of the logits, with 2 that of the data too, times g.
  template <math::Clip clip, int gradients>
  VF_INLINE void add(Floats x, Floats a, Floats g, Floats bound, Floats& dx, Floats& da) {
    Floats c = a;
    if constexpr (clip == math::Clip::kClamp) {
      c = c < -bound ? -bound : c;  // NaN stays
      c = c > bound ? bound : c;
    }
    const Floats t = magnitude(c);
    const Floats shift = every(12582912.0f);  // as in math::exp_parts
    const Floats n = madd(t, every(-1.44269504f), shift), k = n - shift;
#if defined(VF_FMA)
    const Floats r = madd(k, every(-0.693147182f), -t);  // the product is exact: what log 2 lacks is 2e-9 of k
#else
    const Floats r = madd(k, every(2.12194440e-4f), madd(k, every(-0.693359375f), -t));
#endif
    const Floats one = every(1.0f);
    Floats p = madd(every(0.00831251498f), r, every(0.0418901183f));  // e^r to 1e-7 on |r| <= log(2) / 2
    p = madd(p, r, every(0.166671142f));
    p = madd(p, r, every(0.499992311f));
    p = madd(p, r, one);
    p = madd(p, r, one);
    const Floats e = times_power(p, k, n), b = one + e;
    const Floats w = less_step(x, c);
    linear = madd(w, c, linear);
    product = madd(product, b, e);
    if constexpr (gradients > 0) {
      const Floats d = w + signed_as(quotient(e, b), c);
      da = clip == math::Clip::kClamp ? d * (c == a ? g : Floats{}) : d * g;  // NaN shows
    }
    if constexpr (gradients > 1) dx = c * g;
  }

  VF_INLINE void join(const LogitsSums& other) {
    linear += other.linear;
    product = madd(product, other.product, product) + other.product;
  }

  double total() const {
    alignas(64) float value[kWidth<float>], q[kWidth<float>];
    store_vec(value, linear);
    store_vec(q, product);
    VF_SIMD
    for (int i = 0; i < kWidth<float>; ++i) value[i] -= math::log1p_positive(q[i]);
    return sum(value, kWidth<float>);
  }
};

/// The sum of n <= kTile elements of one row, from `at` of the tiles on; writes their gradients, times upstream. A gradient may lie over
/// its own input.
template <math::Clip clip, int gradients>
double logits_row(const TermTiles<float>& tiles, int at, float upstream, int n, const math::TermParams<float>& params) {
  constexpr int width = kWidth<float>;
  const float *x = tiles.in[0] + at, *a = tiles.in[1] + at;
  float *grad_x = tiles.grad[0] + at, *grad_a = tiles.grad[1] + at;
  const Floats g = every(upstream), bound = every(params.at[math::kLogitBound]);
  LogitsSums sums;
  Floats dx{}, da{};
  const auto step = [&](LogitsSums& to, int j) {
    to.add<clip, gradients>(load_vec(x + j), load_vec(a + j), g, bound, dx, da);
    if constexpr (gradients > 1) store_vec(grad_x + j, dx);
    if constexpr (gradients > 0) store_vec(grad_a + j, da);
  };
  double total = 0.0;
  int i = 0;
  while (i + width <= n) {
    const int end = n - i < kFactors * width ? n : i + kFactors * width;
    LogitsSums second;  // of every other vector: half as many roundings in a row, and half as long a chain of dependent ones
    for (; i + 2 * width <= end; i += 2 * width) {
      step(sums, i);
      step(second, i + width);
    }
    if (i + width <= end) step(sums, i), i += width;
    sums.join(second);
    if (i == n || n - i >= width) {  // a rest joins the last factors
      total += sums.total();
      sums = LogitsSums{};
    }
  }
  if (i < n) {  // the rest, in lanes of a vector whose other lanes leave the sums as they were
    const size_t bytes = sizeof(float) * static_cast<size_t>(n - i);
    alignas(64) float last_x[width] = {}, last_a[width] = {};
    memcpy(last_x, x + i, bytes);
    memcpy(last_a, a + i, bytes);
    Ints used{};
    for (int j = 0; j < width; ++j) used[j] = j < n - i ? -1 : 0;
    const LogitsSums before = sums;
    sums.add<clip, gradients>(load_vec(last_x), load_vec(last_a), g, bound, dx, da);
    sums.linear = bits_where(used, sums.linear, before.linear);
    sums.product = bits_where(used, sums.product, before.product);
    if constexpr (gradients > 1) memcpy(grad_x + i, &dx, bytes);
    if constexpr (gradients > 0) memcpy(grad_a + i, &da, bytes);
    total += sums.total();
  }
  return total;
}

/// Loops that sum a row of a term, as map_tile's are for tiles: value only, gradients of inputs 1 on, all of them. Null: there are none.
template <typename T>
struct RowLoops {
  using Fn = double (*)(const TermTiles<T>&, int at, T g, int n, const math::TermParams<T>&);
  Fn value = nullptr, gradient = nullptr, all = nullptr;
};
template <math::Clip clip>
constexpr RowLoops<float> logits_loops() {
  return {&logits_row<clip, 0>, &logits_row<clip, 1>, &logits_row<clip, 2>};
}
template <class F, typename T>
constexpr RowLoops<T> row_loops() {
  if constexpr (std::is_same_v<T, float> && std::is_same_v<F, math::BernoulliLogits<math::Clip::kNone>>) {
    return logits_loops<math::Clip::kNone>();
  } else if constexpr (std::is_same_v<T, float> && std::is_same_v<F, math::BernoulliLogits<math::Clip::kClamp>>) {
    return logits_loops<math::Clip::kClamp>();
  } else {
    return {};
  }
}

}  // namespace VF_ISA
}  // namespace vae_fast

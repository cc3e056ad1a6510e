// Mixtures whose rows have weights of their own, and densities of each dimension by itself: log sum_k w_k N(x_d; mean_kd, sigma_kd^2), one
// log-sum-exp for every row and dimension. Rows stay in the vector lanes throughout.
#pragma once

#include "mixture_chunk.h"

namespace vae_fast {
namespace VF_ISA {

/// The log weights of components [k0, k0 + n), one below the other for each component.
template <typename T>
void load_row_weights(const MixtureChunk<T>& c, int64_t k0, int n) {
  const T* from = static_cast<const T*>(c.a.row_weights) + c.first * c.a.components + k0;
  for (int k = 0; k < n; ++k) {
    T* to = c.row_weights(k);
    for (int i = 0; i < c.rows; ++i) to[i] = from[i * c.a.components + k];
    for (int i = c.rows; i < c.padded_rows; ++i) to[i] = T(0);
  }
}

/// No joint weights at all, only the components' own.
template <typename T>
void no_energies(const MixtureChunk<T>& c, int64_t k0, int n) {
  if (c.a.row_weights != nullptr) load_row_weights(c, k0, n);
  const int64_t count = static_cast<int64_t>(n) * c.p.rows;
  for (int64_t i = 0; i < count; ++i) c.s.energies[i] = T(0);
}

/// What components [k0, k0 + n) have of every row, back into rows.
template <typename T, typename From>
void store_row_counts(const MixtureChunk<T>& c, const From* counts, int64_t k0, int n, double* to) {
  to += c.first * c.a.components + k0;
  for (int i = 0; i < c.rows; ++i) {
    for (int k = 0; k < n; ++k) to[i * c.a.components + k] = static_cast<double>(counts[static_cast<int64_t>(k) * c.p.rows + i]);
  }
}

/// One component in one dimension.
template <typename T>
struct DimTerm {
  T mean, inverse, constant;

  DimTerm(const MixtureChunk<T>& c, int64_t k, int d)
      : mean(c.means[k * c.p.stride + d]),
        inverse(c.scale[k * c.p.stride + d] * math::mixture_dim_unit<T>()),
        constant(static_cast<const T*>(c.a.dim_constant)[k * c.a.dims + d]) {}
  VF_INLINE T standardised(T x) const { return math::standardise(x, mean, inverse); }
  /// l of u^2 and of the row's own log weight.
  template <bool weighted>
  VF_INLINE T exponent(T square, T weight) const {
    return math::mixture_dim_exponent<weighted>(constant, square, weight);
  }
  /// du/dx in units of the standard deviation, for a moment in units of u.
  T slope() const {
    const T s = inverse / math::mixture_dim_one<T>();
    return s < math::largest<T>() ? s : math::largest<T>();
  }
};

template <typename T>
void start_dims(const MixtureChunk<T>& c) {
  const int64_t count = c.panel(c.dims());
  for (int64_t i = 0; i < count; ++i) {
    c.s.dim_top[i] = -math::infinity<T>();
    c.s.dim_total[i] = 0.0;
  }
}

/// Adds components [k0, k0 + n) to the totals as they are, without a shift: constants are at most 0, and so is l. Of a total that is too
/// small for that, or of constants that are above 0 all the same, mark_far tells.
template <typename T, bool weighted>
void add_dims_loop(const MixtureChunk<T>& c, int64_t k0, int n) {
  constexpr int block = kRowBlock<T>;
  alignas(64) T part[block];
  for (int d = 0; d < c.dims(); ++d) {
    for (int r = 0; r < c.padded_rows; r += block) {
      const T* x = c.s.transposed + c.panel(d) + r;
      double* total = c.s.dim_total + c.panel(d) + r;
      for (int j0 = 0; j0 < n; j0 += kDimBlock) {
        const int j1 = j0 + kDimBlock < n ? j0 + kDimBlock : n;
        T above = T(0);
        VF_SIMD
        for (int i = 0; i < block; ++i) part[i] = T(0);
        for (int j = j0; j < j1; ++j) {
          const DimTerm<T> term(c, k0 + j, d);
          const T* w = weighted ? c.row_weights(j) + r : x;
          above = term.constant > T(0) ? math::infinity<T>() : above;
          VF_SIMD
          for (int i = 0; i < block; ++i) {
            const T u = term.standardised(x[i]);
            part[i] += math::exp2_below(term.template exponent<weighted>(u * u, w[i]));
          }
        }
        VF_SIMD
        for (int i = 0; i < block; ++i) total[i] += static_cast<double>(part[i] + above);
      }
    }
  }
}

/// Marks the rows of which a total without a shift is such that a term which counts may have been out of range; whether there are any.
template <typename T>
bool mark_far(const MixtureChunk<T>& c, bool* far) {
  for (int i = 0; i < c.rows; ++i) far[i] = false;
  for (int d = 0; d < c.dims(); ++d) {
    const double* total = c.s.dim_total + c.panel(d);
    for (int i = 0; i < c.rows; ++i) far[i] |= !math::mixture_dim_in_range(total[i], sizeof(T) == 8);
  }
  bool any = false;
  for (int i = 0; i < c.rows; ++i) any |= far[i];
  return any;
}

/// Totals as those of a shift of 0.
template <typename T>
void unshifted(const MixtureChunk<T>& c) {
  const int64_t count = c.panel(c.dims());
  for (int64_t i = 0; i < count; ++i) c.s.dim_top[i] = T(0);
}

/// Adds at most kDimBlock components, `n` from k0 on (the sweep's j0-th), to a row block's running maximum and total in one dimension.
template <typename T, bool weighted>
VF_INLINE void merge_dim_block(const MixtureChunk<T>& c, int r, int d, int64_t k0, int j0, int n) {
  constexpr int block = kRowBlock<T>;
  alignas(64) T l[kDimBlock * block], top[block], shift[block], part[block];
  const T* x = c.s.transposed + c.panel(d) + r;
  T* running = c.s.dim_top + c.panel(d) + r;
  double* total = c.s.dim_total + c.panel(d) + r;
  VF_SIMD
  for (int i = 0; i < block; ++i) top[i] = running[i];
  for (int j = 0; j < n; ++j) {
    const DimTerm<T> term(c, k0 + j, d);
    const T* w = weighted ? c.row_weights(j0 + j) + r : x;
    T* to = l + j * block;
    VF_SIMD
    for (int i = 0; i < block; ++i) {
      const T u = term.standardised(x[i]), v = term.template exponent<weighted>(u * u, w[i]);
      to[i] = v;
      top[i] = v > top[i] ? v : top[i];
    }
  }
  VF_SIMD
  for (int i = 0; i < block; ++i) {
    shift[i] = shift_of(top[i]);
    total[i] *= static_cast<double>(math::exp2_below(running[i] - shift[i]));
    running[i] = top[i];
    part[i] = T(0);
  }
  for (int j = 0; j < n; ++j) {
    const T* from = l + j * block;
    VF_SIMD
    for (int i = 0; i < block; ++i) part[i] += math::exp2_below(from[i] - shift[i]);
  }
  VF_SIMD
  for (int i = 0; i < block; ++i) total[i] += static_cast<double>(part[i]);
}

template <typename T, bool weighted>
void merge_dims_loop(const MixtureChunk<T>& c, int64_t k0, int n) {
  for (int r = 0; r < c.padded_rows; r += kRowBlock<T>) {
    for (int d = 0; d < c.dims(); ++d) {
      for (int j = 0; j < n; j += kDimBlock) merge_dim_block<T, weighted>(c, r, d, k0 + j, j, n - j < kDimBlock ? n - j : kDimBlock);
    }
  }
}

/// Adds components [k0, k0 + n), whose row weights are loaded, in every dimension: as they are, or to a running maximum.
template <typename T>
void merge_dims(const MixtureChunk<T>& c, int64_t k0, int n, bool shifted) {
  const bool weighted = c.a.row_weights != nullptr;
  if (shifted) return weighted ? merge_dims_loop<T, true>(c, k0, n) : merge_dims_loop<T, false>(c, k0, n);
  weighted ? add_dims_loop<T, true>(c, k0, n) : add_dims_loop<T, false>(c, k0, n);
}

/// The densities of the rows, or of those that are marked, and what the backward pass wants of them.
template <typename T>
void store_dims(const MixtureChunk<T>& c, const MixtureForwardArgs& f, const bool* only) {
  T* const shifts = static_cast<T*>(f.dim_normaliser) + c.first;
  T* const totals = shifts + c.a.dims * c.a.rows;
  double log_prob[kTile];  // rows are at most so many: mixture_plan
  for (int i = 0; i < c.rows; ++i) log_prob[i] = *c.a.dim_baseline;
  for (int d = 0; d < c.dims(); ++d) {
    const T* top = c.s.dim_top + c.panel(d);
    const double* total = c.s.dim_total + c.panel(d);
    T* shift = shifts + d * c.a.rows;
    T* sum = totals + d * c.a.rows;
    VF_SIMD
    for (int i = 0; i < c.rows; ++i) {
      const T one = static_cast<T>(total[i]);
      if (only == nullptr || only[i]) {
        shift[i] = top[i];
        sum[i] = one;
      }
      log_prob[i] += math::mixture_dim_log(top[i], one);
    }
  }
  T* out = static_cast<T*>(f.factorized) + c.first;
  for (int i = 0; i < c.rows; ++i) out[i] = only == nullptr || only[i] ? static_cast<T>(log_prob[i]) : out[i];
}

/// What turns the terms of every dimension into weights, as set_share does those of a row; returns whether any has a shift.
template <typename T>
bool load_dims(const MixtureChunk<T>& c, const MixtureBackwardArgs& b) {
  const T* const shifts = static_cast<const T*>(b.dim_normaliser) + c.first;
  const T* const totals = shifts + c.a.dims * c.a.rows;
  const T* per_row = static_cast<const T*>(b.factorized_grad.data);
  bool any = false;
  for (int d = 0; d < c.dims(); ++d) {
    T* top = c.s.dim_top + c.panel(d);
    T* coefficient = c.s.dim_coefficient + c.panel(d);
    for (int i = 0; i < c.rows; ++i) {
      const T one = per_row == nullptr ? T(1) : per_row[(c.first + i) * b.factorized_grad.stride];
      const T grad = static_cast<T>(b.factorized_grad.constant) * one, shift = shifts[d * c.a.rows + i];
      coefficient[i] = math::mixture_share(grad, shift, totals[d * c.a.rows + i]);
      top[i] = math::mixture_shift(shift);
      any |= !(shift == T(0));
    }
    for (int i = c.rows; i < c.padded_rows; ++i) {
      coefficient[i] = T(0);
      top[i] = math::infinity<T>();
    }
  }
  return any;
}

/// With a row's joint weights q in place of the energies: all sums and gradients of q_kd = q + coefficient_d 2^{l_kd - shift_d}.
template <typename T, bool weighted, bool shifted, bool careful>
void factorized_sums_loop(const MixtureChunk<T>& c, int64_t k0, int n, const MixtureSums& to) {
  constexpr T far = math::largest<T>(), one = math::mixture_dim_one<T>();
  for (int d = 0; d < c.dims(); ++d) {
    const T* x = c.s.transposed + c.panel(d);
    const T* shift = c.s.dim_top + c.panel(d);
    const T* coefficient = c.s.dim_coefficient + c.panel(d);
    T* grad = c.s.grad_t + c.panel(d);
    for (int j = 0; j < n; ++j) {
      const DimTerm<T> term(c, k0 + j, d);
      const T* q = c.energies(j);
      const T* w = weighted ? c.row_weights(j) : q;
      double* counts = weighted ? c.row_counts(j) : nullptr;
      const T slope = term.slope();
      T first = T(0), second = T(0), count = T(0);
#pragma omp simd reduction(+ : first, second, count)
      for (int i = 0; i < c.padded_rows; ++i) {
        T u = term.standardised(x[i]), exponent = term.template exponent<weighted>(u * u, w[i]);
        if constexpr (shifted) exponent -= shift[i];
        const T own = coefficient[i] * math::exp2_below(exponent);
        if constexpr (careful) {
          u = u > far ? far : u;
          u = u < -far ? -far : u;
        }
        const T all = q[i] + own, moment = all * u;
        first += moment;
        second += math::fma(moment, u, -(all * one));  // not of the square, which may be out of range where the weight is 0
        count += own;
        grad[i] = math::fma(moment, slope, grad[i]);
        if constexpr (weighted) counts[i] += static_cast<double>(own);
      }
      if (to.counts == nullptr) continue;
      const int64_t at = (k0 + j) * c.p.stride + d;
      to.counts[k0 + j] += static_cast<double>(count);
      to.first[at] += static_cast<double>(first) * (1.0 / static_cast<double>(math::mixture_dim_unit<T>()));
      to.second[at] += static_cast<double>(second) * (1.0 / static_cast<double>(one));
    }
  }
}

template <typename T, bool weighted>
void factorized_sums_of(const MixtureChunk<T>& c, int64_t k0, int n, const MixtureSums& to) {
  if (c.careful) return factorized_sums_loop<T, weighted, true, true>(c, k0, n, to);
  c.shifted ? factorized_sums_loop<T, weighted, true, false>(c, k0, n, to) : factorized_sums_loop<T, weighted, false, false>(c, k0, n, to);
}

template <typename T>
void factorized_sums(const MixtureChunk<T>& c, const MixtureBackwardArgs& b, int64_t k0, int n, const MixtureSums& to) {
  if (to.counts != nullptr) {
    for (int j = 0; j < n; ++j) to.counts[k0 + j] += sum(c.energies(j), c.rows);
  }
  if (c.a.row_weights == nullptr) {
    return factorized_sums_of<T, false>(c, k0, n, to);
  }
  const int64_t count = static_cast<int64_t>(n) * c.p.rows;
  for (int64_t i = 0; i < count; ++i) c.s.row_counts[i] = static_cast<double>(c.s.energies[i]);
  factorized_sums_of<T, true>(c, k0, n, to);
  if (b.row_counts != nullptr) store_row_counts(c, c.s.row_counts, k0, n, b.row_counts);
}

}  // namespace VF_ISA
}  // namespace vae_fast

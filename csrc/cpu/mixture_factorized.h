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
      : mean(c.means[k * c.p.padded_dims + d]),
        inverse(c.scale[k * c.p.padded_dims + d]),
        constant(static_cast<const T*>(c.a.dim_constant)[k * c.a.dims + d]) {}
  VF_INLINE T standardised(T x) const { return math::standardise(x, mean, inverse); }
  /// l of u and of the row's own log weight, the same number wherever it is computed.
  VF_INLINE T log_term(T u, T weight) const { return (constant + weight) - (T(0.5) * u) * u; }
};

template <typename T>
void start_dims(const MixtureChunk<T>& c) {
  const int64_t count = c.panel(c.dims());
  for (int64_t i = 0; i < count; ++i) {
    c.s.dim_top[i] = -math::infinity<T>();
    c.s.dim_total[i] = 0.0;
  }
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
      const T v = term.log_term(term.standardised(x[i]), weighted ? w[i] : T(0));
      to[i] = v;
      top[i] = v > top[i] ? v : top[i];
    }
  }
  VF_SIMD
  for (int i = 0; i < block; ++i) {
    shift[i] = shift_of(top[i]);
    total[i] *= static_cast<double>(math::exp(running[i] - shift[i]));
    running[i] = top[i];
    part[i] = T(0);
  }
  for (int j = 0; j < n; ++j) {
    const T* from = l + j * block;
    VF_SIMD
    for (int i = 0; i < block; ++i) part[i] += math::exp(from[i] - shift[i]);
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

/// Adds components [k0, k0 + n), whose row weights are loaded, in every dimension.
template <typename T>
void merge_dims(const MixtureChunk<T>& c, int64_t k0, int n) {
  c.a.row_weights == nullptr ? merge_dims_loop<T, false>(c, k0, n) : merge_dims_loop<T, true>(c, k0, n);
}

template <typename T>
void store_dims(const MixtureChunk<T>& c, const MixtureForwardArgs& f) {
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
      shift[i] = top[i];
      sum[i] = static_cast<T>(total[i]);
      log_prob[i] += static_cast<double>(top[i]) + static_cast<double>(math::log(sum[i]));
    }
  }
  T* out = static_cast<T*>(f.factorized) + c.first;
  for (int i = 0; i < c.rows; ++i) out[i] = static_cast<T>(log_prob[i]);
}

/// What turns the terms of every dimension into weights, as set_share does those of a row.
template <typename T>
void load_dims(const MixtureChunk<T>& c, const MixtureBackwardArgs& b) {
  const T* const shifts = static_cast<const T*>(b.dim_normaliser) + c.first;
  const T* const totals = shifts + c.a.dims * c.a.rows;
  const T* per_row = static_cast<const T*>(b.factorized_grad.data);
  for (int d = 0; d < c.dims(); ++d) {
    T* top = c.s.dim_top + c.panel(d);
    T* coefficient = c.s.dim_coefficient + c.panel(d);
    for (int i = 0; i < c.rows; ++i) {
      const T one = per_row == nullptr ? T(1) : per_row[(c.first + i) * b.factorized_grad.stride];
      const T grad = static_cast<T>(b.factorized_grad.constant) * one, shift = shifts[d * c.a.rows + i];
      coefficient[i] = math::mixture_share(grad, shift, totals[d * c.a.rows + i]);
      top[i] = math::mixture_shift(shift);
    }
    for (int i = c.rows; i < c.padded_rows; ++i) {
      coefficient[i] = T(0);
      top[i] = math::infinity<T>();
    }
  }
}

/// With a row's joint weights q in place of the energies: all sums and gradients of q_kd = q + coefficient_d e^{l_kd - shift_d}.
template <typename T, bool weighted, bool careful>
void factorized_sums_loop(const MixtureChunk<T>& c, int64_t k0, int n, const MixtureSums& to) {
  const T far = math::largest<T>();
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
      T first = T(0), second = T(0), count = T(0);
#pragma omp simd reduction(+ : first, second, count)
      for (int i = 0; i < c.padded_rows; ++i) {
        T u = term.standardised(x[i]);
        const T own = coefficient[i] * math::exp(term.log_term(u, weighted ? w[i] : T(0)) - shift[i]);
        if constexpr (careful) {
          u = u > far ? far : u;
          u = u < -far ? -far : u;
        }
        const T all = q[i] + own, moment = all * u;
        first += moment;
        second += moment * u - all;
        count += own;
        grad[i] += moment * term.inverse;
        if constexpr (weighted) counts[i] += static_cast<double>(own);
      }
      if (to.counts == nullptr) continue;
      const int64_t at = (k0 + j) * c.p.padded_dims + d;
      to.counts[k0 + j] += static_cast<double>(count);
      to.first[at] += static_cast<double>(first);
      to.second[at] += static_cast<double>(second);
    }
  }
}

template <typename T>
void factorized_sums(const MixtureChunk<T>& c, const MixtureBackwardArgs& b, int64_t k0, int n, const MixtureSums& to) {
  if (to.counts != nullptr) {
    for (int j = 0; j < n; ++j) to.counts[k0 + j] += sum(c.energies(j), c.rows);
  }
  if (c.a.row_weights == nullptr) {
    return c.careful ? factorized_sums_loop<T, false, true>(c, k0, n, to) : factorized_sums_loop<T, false, false>(c, k0, n, to);
  }
  const int64_t count = static_cast<int64_t>(n) * c.p.rows;
  for (int64_t i = 0; i < count; ++i) c.s.row_counts[i] = static_cast<double>(c.s.energies[i]);
  c.careful ? factorized_sums_loop<T, true, true>(c, k0, n, to) : factorized_sums_loop<T, true, false>(c, k0, n, to);
  if (b.row_counts != nullptr) store_row_counts(c, c.s.row_counts, k0, n, b.row_counts);
}

}  // namespace VF_ISA
}  // namespace vae_fast

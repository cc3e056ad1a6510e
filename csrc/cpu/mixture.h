// Mixtures of Gaussians: log-density by an online log-sum-exp over components, and the backward pass, which is the M-step's sums too.
#pragma once

#include "mixture_diagonal.h"
#include "mixture_factorized.h"
#include "mixture_full.h"

namespace vae_fast {
namespace VF_ISA {

template <typename T>
void energies(const MixtureChunk<T>& c, int64_t k0, int n) {
  c.a.full ? full_energies(c, k0, n) : diagonal_energies(c, k0, n);
  if (c.a.row_weights == nullptr) return;
  load_row_weights(c, k0, n);
  for (int k = 0; k < n; ++k) {
    T* e = c.energies(k);
    const T* w = c.row_weights(k);
    VF_SIMD
    for (int i = 0; i < c.padded_rows; ++i) e[i] += w[i];
  }
}

/// f(k0, n) over sweeps of as many components as fit.
template <class F>
inline void for_each_sweep(const MixtureArgs& a, const MixturePlan& p, const F& f) {
  for (int64_t k = 0; k < a.components; k += p.components) {
    f(k, static_cast<int>(a.components - k < p.components ? a.components - k : p.components));
  }
}

/// Whether a row among `rows` is rounded, see math::mixture_rounded.
template <typename T>
bool any_rounded(const T* shift, int rows) {
  int count = 0;
#pragma omp simd reduction(+ : count)
  for (int i = 0; i < rows; ++i) count += math::mixture_rounded(shift[i]) ? 1 : 0;
  return count > 0;
}

/// f(whether rows may be rounded), a compile-time constant, so that loops over rows that are not do not ask.
template <class F>
inline void with_rounded(bool rounded, const F& f) {
  rounded ? f(std::true_type()) : f(std::false_type());
}

/// Adds components [k_first, k_first + n), whose energies are there, to every row's running maximum and total; with `keep`, where these are
/// all components, the energies become e^{l - top}.
template <typename T, bool keep = false>
void merge(const MixtureChunk<T>& c, int64_t k_first, int n) {
  alignas(64) T top[kTile], shift[kTile], part[kTile];
  const int rows = c.padded_rows;  // at most kTile: mixture_plan
  VF_SIMD
  for (int i = 0; i < rows; ++i) top[i] = c.s.top[i];
  for (int k = 0; k < n; ++k) {
    const T* e = c.energies(k);
    const T constant = c.constant[k_first + k];
    VF_SIMD
    for (int i = 0; i < rows; ++i) {
      const T l = constant + e[i];
      top[i] = l > top[i] ? l : top[i];
    }
  }
  VF_SIMD
  for (int i = 0; i < rows; ++i) shift[i] = shift_of(top[i]);
  if (k_first > 0) {  // the first ones find totals of 0
    VF_SIMD
    for (int i = 0; i < rows; ++i) c.s.total[i] *= static_cast<double>(math::exp(c.s.top[i] - shift[i]));
  }
  VF_SIMD
  for (int i = 0; i < rows; ++i) c.s.top[i] = top[i];
  with_rounded(any_rounded(shift, rows), [&](auto some) {
    for (int k0 = 0; k0 < n; k0 += kDimBlock) {
      VF_SIMD
      for (int i = 0; i < rows; ++i) part[i] = T(0);
      for (int k = k0; k < n && k < k0 + kDimBlock; ++k) {
        T* e = c.energies(k);
        const T constant = c.constant[k_first + k], low = c.low(k_first + k);
        VF_SIMD
        for (int i = 0; i < rows; ++i) {
          const T power = math::exp(decltype(some)::value ? math::mixture_exponent_rounded(constant, low, e[i], shift[i])
                                                          : math::mixture_exponent(constant, low, e[i], shift[i]));
          part[i] += power;
          if constexpr (keep) e[i] = power;
        }
      }
      VF_SIMD
      for (int i = 0; i < rows; ++i) c.s.total[i] += static_cast<double>(part[i]);
    }
  });
}

/// What turns a row's energies into weights, from its upstream gradient, shift and total.
template <typename T>
void set_share(const MixtureChunk<T>& c, int i, T grad, T shift, T total) {
  c.s.coefficient[i] = math::mixture_share(grad, shift, total);
  c.s.top[i] = math::mixture_shift(shift);
}

/// The energies of components [k_first, k_first + n) become weights q = grad e^{l - shift} / total.
template <typename T>
void weigh(const MixtureChunk<T>& c, int64_t k_first, int n) {
  with_rounded(any_rounded(c.s.top, c.padded_rows), [&](auto some) {
    for (int k = 0; k < n; ++k) {
      T* e = c.energies(k);
      const T constant = c.constant[k_first + k], low = c.low(k_first + k);
      VF_SIMD
      for (int i = 0; i < c.padded_rows; ++i) {
        e[i] = c.s.coefficient[i] * math::exp(decltype(some)::value ? math::mixture_exponent_rounded(constant, low, e[i], c.s.top[i])
                                                                    : math::mixture_exponent(constant, low, e[i], c.s.top[i]));
      }
    }
  });
}

/// No component has been merged yet.
template <typename T>
void start_rows(const MixtureChunk<T>& c) {
  for (int i = 0; i < c.padded_rows; ++i) {
    c.s.top[i] = -math::infinity<T>();
    c.s.total[i] = 0.0;
  }
}

template <typename T>
void store_log_prob(const MixtureChunk<T>& c, void* to) {
  T* out = static_cast<T*>(to) + c.first;
  const T* top = c.s.top;
  const double* total = c.s.total;
  const double baseline = *c.a.baseline;
  VF_SIMD
  for (int i = 0; i < c.rows; ++i) {
    out[i] = static_cast<T>(baseline + static_cast<double>(top[i]) + static_cast<double>(math::log(static_cast<T>(total[i]))));
  }
}

template <typename T>
void mixture_rows(const MixtureForwardArgs& f, const MixturePlan& plan, const MixtureParameters& parameters, int64_t r0, int64_t r1,
                  void* scratch) {
  MixtureChunk<T> c(f.mixture, plan, parameters, scratch);
  for (int64_t r = r0; r < r1; r += plan.rows) {
    c.load_rows(r, static_cast<int>(r1 - r < plan.rows ? r1 - r : plan.rows), false);
    start_rows(c);
    if (f.factorized != nullptr) start_dims(c);
    for_each_sweep(f.mixture, plan, [&](int64_t k, int n) {
      energies(c, k, n);
      merge(c, k, n);
      if (f.factorized != nullptr) merge_dims(c, k, n, false);
    });
    if (f.factorized != nullptr) {
      bool far[kTile];
      const bool some = mark_far(c, far);
      unshifted(c);
      store_dims(c, f, nullptr);
      if (some) {  // a row far from every component, or no number
        start_dims(c);
        for_each_sweep(f.mixture, plan, [&](int64_t k, int n) {
          if (f.mixture.row_weights != nullptr) load_row_weights(c, k, n);
          merge_dims(c, k, n, true);
        });
        store_dims(c, f, far);
      }
    }
    T* shift = static_cast<T*>(f.shift);
    T* total = static_cast<T*>(f.total);
    if (f.log_prob != nullptr) store_log_prob(c, f.log_prob);
    for (int i = 0; i < c.rows; ++i) {
      if (shift != nullptr) shift[r + i] = c.s.top[i];
      if (total != nullptr) total[r + i] = static_cast<T>(c.s.total[i]);
    }
    if (f.responsibilities == nullptr) continue;
    T* q = static_cast<T*>(f.responsibilities) + r * f.mixture.components;
    for (int i = 0; i < c.padded_rows; ++i) set_share(c, i, T(1), c.s.top[i], static_cast<T>(c.s.total[i]));
    for_each_sweep(f.mixture, plan, [&](int64_t k, int n) {
      if (n < f.mixture.components) energies(c, k, n);
      weigh(c, k, n);
      for (int i = 0; i < c.rows; ++i) {
        for (int j = 0; j < n; ++j) q[i * f.mixture.components + k + j] = c.energies(j)[i];
      }
    });
  }
}

/// Every row's top and total, and its log-density; one sweep over all components leaves what share() takes.
template <typename T>
void find_total(const MixtureChunk<T>& c, const MixtureArgs& a, const MixturePlan& plan, void* log_prob) {
  start_rows(c);
  for_each_sweep(a, plan, [&](int64_t k, int n) {
    energies(c, k, n);
    n == a.components ? merge<T, true>(c, k, n) : merge(c, k, n);
  });
  store_log_prob(c, log_prob);
}

/// What the forward pass found.
template <typename T>
void load_total(const MixtureChunk<T>& c, const MixtureBackwardArgs& b) {
  const T* shift = static_cast<const T*>(b.shift) + c.first;
  const T* total = static_cast<const T*>(b.total) + c.first;
  for (int i = 0; i < c.rows; ++i) {
    c.s.top[i] = shift[i];
    c.s.total[i] = static_cast<double>(total[i]);
  }
}

/// weigh() of all components, whose energies are e^{l - top} already.
template <typename T>
void share(const MixtureChunk<T>& c, int n) {
  for (int k = 0; k < n; ++k) {
    T* e = c.energies(k);
    VF_SIMD
    for (int i = 0; i < c.padded_rows; ++i) e[i] *= c.s.coefficient[i];
  }
}

template <typename T>
void load_weights(const MixtureChunk<T>& c, const T* weights, int64_t k, int n) {
  for (int j = 0; j < n; ++j) {
    T* q = c.energies(j);
    for (int i = 0; i < c.rows; ++i) q[i] = weights[(c.first + i) * c.a.components + k + j];
    for (int i = c.rows; i < c.padded_rows; ++i) q[i] = T(0);
  }
}

/// The chunk's gradient, negated and in units of x, as rows.
template <typename T>
void store_gradient(const MixtureChunk<T>& c, const Stream& to) {
  constexpr int width = kWidth<T>;
  const int64_t dims = c.dims();
  const Rect rect{c.first, 0, c.rows, static_cast<int>(dims)};
  T* const place = in_place<T>(to, rect, dims);
  T* const dense = place != nullptr ? place : c.s.transposed;  // of which nothing is needed any more
  int d = 0;
  for (; d + width <= dims; d += width) {
    const Vec<T> by = c.x_scale == nullptr ? every(T(-1)) : -load_vec(c.x_scale + d);
    for (int r = 0; r < c.rows; r += width) {
      Vec<T> v[width];
      for (int i = 0; i < width; ++i)
        v[i] = load_vec(c.by_columns() ? c.s.grad_t + c.panel(d + i) + r : c.s.grad + c.panel(d) + (r + i) * width);
      if (c.by_columns()) transpose<T>(v);
      for (int i = 0; i < width && r + i < c.rows; ++i) store_vec(dense + (r + i) * dims + d, v[i] * by);
    }
  }
  for (; d < dims; ++d) {
    const T by = c.x_scale == nullptr ? T(-1) : -c.x_scale[d];
    const T* from = c.by_columns() ? c.s.grad_t + c.panel(d) : c.s.grad + c.panel(d / width * width) + d % width;
    const int step = c.by_columns() ? 1 : width;
    for (int i = 0; i < c.rows; ++i) dense[i * dims + d] = from[i * step] * by;
  }
  if (place == nullptr) store(dense, to, rect, dims);
}

template <typename T>
void mixture_backward_rows(const MixtureBackwardArgs& b, const MixturePlan& plan, const MixtureParameters& parameters, int64_t r0,
                           int64_t r1, const MixtureSums& sums, void* scratch) {
  MixtureChunk<T> c(b.mixture, plan, parameters, scratch);
  const bool gradient = b.grad_x.data != nullptr;
  const T* per_row = static_cast<const T*>(b.grad.data);
  const bool joint = b.dim_normaliser == nullptr || per_row != nullptr || b.grad.constant != 0.0;
  for (int64_t r = r0; r < r1; r += plan.rows) {
    c.load_rows(r, static_cast<int>(r1 - r < plan.rows ? r1 - r : plan.rows), c.a.full || !c.by_columns());
    if (gradient || b.dim_normaliser != nullptr) {  // factorized_sums adds to it in any case
      T* grad = c.by_columns() ? c.s.grad_t : c.s.grad;
      const int64_t n = static_cast<int64_t>(plan.rows) * (c.by_columns() ? c.dims() : plan.padded_dims);
      for (int64_t i = 0; i < n; ++i) grad[i] = T(0);
    }
    if (b.weights == nullptr) {
      if (b.log_prob != nullptr) {
        find_total(c, b.mixture, plan, b.log_prob);
      } else {
        load_total(c, b);
      }
      for (int i = 0; i < c.rows; ++i) {
        const T grad = static_cast<T>(b.grad.constant) * (per_row == nullptr ? T(1) : per_row[(r + i) * b.grad.stride]);
        set_share(c, i, grad, c.s.top[i], static_cast<T>(c.s.total[i]));
      }
      for (int i = c.rows; i < c.padded_rows; ++i) set_share(c, i, T(0), -math::infinity<T>(), T(1));
    }
    if (b.dim_normaliser != nullptr) c.shifted = load_dims(c, b);
    for_each_sweep(b.mixture, plan, [&](int64_t k, int n) {
      if (b.weights != nullptr) {
        load_weights(c, static_cast<const T*>(b.weights), k, n);
      } else if (!joint) {
        no_energies(c, k, n);
      } else if (b.log_prob != nullptr && n == b.mixture.components) {
        share(c, n);
      } else {
        energies(c, k, n);
        weigh(c, k, n);
      }
      if (b.dim_normaliser != nullptr) return factorized_sums(c, b, k, n, sums);
      if (sums.counts != nullptr) {
        for (int j = 0; j < n; ++j) sums.counts[k + j] += sum(c.energies(j), c.rows);
      }
      if (b.row_counts != nullptr) {
        store_row_counts(c, c.s.energies, k, n, b.row_counts);
        if (sums.counts == nullptr && !gradient) return;
      }
      c.a.full ? full_sums(c, k, n, sums, gradient) : diagonal_sums(c, k, n, sums, gradient);
    });
    if (gradient) store_gradient(c, b.grad_x);
  }
}

}  // namespace VF_ISA
}  // namespace vae_fast

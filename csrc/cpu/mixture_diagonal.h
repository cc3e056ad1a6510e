// Diagonal covariances: energies with rows in the lanes, sums over rows with dimensions in the lanes.
#pragma once

#include "mixture_chunk.h"

namespace vae_fast {
namespace VF_ISA {

/// e_k = -sum_d (u^2 - 1) / 2 of the row block at r and of `block` components from k.
template <typename T, int block>
VF_INLINE void diagonal_energies_of(const MixtureChunk<T>& c, int r, int64_t k, T* l) {
  constexpr int width = kWidth<T>;
  const int dims = c.dims();
  const int64_t stride = c.p.stride, row_stride = c.p.rows;
  const T* mean = c.means + k * stride;
  const T* inverse = c.scale + k * stride;
  for (int d0 = 0; d0 < dims; d0 += kDimBlock) {
    const int d1 = d0 + kDimBlock < dims ? d0 + kDimBlock : dims;
    Vec<T> sum[block][kRowVectors];
    for (int b = 0; b < block; ++b) {
      for (int j = 0; j < kRowVectors; ++j) sum[b][j] = every(static_cast<T>(d0 - d1));
    }
    const T* x = c.s.transposed + d0 * row_stride + r;
    for (int d = d0; d < d1; ++d, x += row_stride) {
      Vec<T> row[kRowVectors];
      for (int j = 0; j < kRowVectors; ++j) row[j] = load_vec(x + j * width);
      for (int b = 0; b < block; ++b) {
        const Vec<T> m = every(mean[b * stride + d]), by = every(inverse[b * stride + d]);
        for (int j = 0; j < kRowVectors; ++j) {
          const Vec<T> u = math::standardise(row[j], m, by);
          sum[b][j] = madd(u, u, sum[b][j]);
        }
      }
    }
    for (int b = 0; b < block; ++b) {
      for (int j = 0; j < kRowVectors; ++j) {
        T* at = l + b * row_stride + j * width;
        store_vec(at, madd(every(T(-0.5)), sum[b][j], d0 == 0 ? Vec<T>{} : load_vec(at)));
      }
    }
  }
}

/// The energies of components [k0, k0 + n).
template <typename T>
void diagonal_energies(const MixtureChunk<T>& c, int64_t k0, int n) {
  for (int r = 0; r < c.padded_rows; r += kRowBlock<T>) {
    int k = 0;
    for (; k + kComponentBlock <= n; k += kComponentBlock) diagonal_energies_of<T, kComponentBlock>(c, r, k0 + k, c.energies(k) + r);
    for (; k < n; ++k) diagonal_energies_of<T, 1>(c, r, k0 + k, c.energies(k) + r);
  }
}

/// With the weights q in place of the energies: adds q u and q u^2 to the sums, and sum_k q u / sigma_k to the chunk's (negative) gradient.
template <typename T, int block, bool sums, bool gradient, bool careful>
VF_INLINE void diagonal_sums_of(const MixtureChunk<T>& c, int k, int64_t component, int d, const MixtureSums& to) {
  const int64_t stride = c.p.stride, at = component * stride + d;
  Vec<T> mean[block], inverse[block], first[block], second[block];
  for (int b = 0; b < block; ++b) {
    mean[b] = load_vec(c.means + at + b * stride);
    inverse[b] = load_vec(c.scale + at + b * stride);
    first[b] = second[b] = Vec<T>{};
    // Where rows are long the next components' values are too far apart for the processor to foresee.
    const int64_t next = at + (block + b) * stride;
    __builtin_prefetch(c.means + next);
    __builtin_prefetch(c.scale + next);
    if constexpr (sums) {
      for (int line = 0; line < kWidth<T>; line += 8) {
        __builtin_prefetch(to.first + next + line, 1);
        __builtin_prefetch(to.second + next + line, 1);
      }
    }
  }
  const T* q = c.energies(k);
  const T* x = c.s.rows + c.panel(d);
  T* grad = c.s.grad + c.panel(d);
  for (int i = 0; i < c.rows; ++i, x += kWidth<T>, grad += kWidth<T>, ++q) {
    const Vec<T> row = load_vec(x);
    Vec<T> g = gradient ? load_vec(grad) : Vec<T>{};
    for (int b = 0; b < block; ++b) {
      Vec<T> u = math::standardise(row, mean[b], inverse[b]);
      if constexpr (careful) {
        const Vec<T> far = every(math::largest<T>());
        u = u > far ? far : (u < -far ? -far : u);
      }
      const Vec<T> w = every(q[b * static_cast<int64_t>(c.p.rows)]) * u;
      if constexpr (sums) {
        first[b] += w;
        second[b] = madd(w, u, second[b]);
      }
      if constexpr (gradient) g = madd(w, inverse[b], g);
    }
    if constexpr (gradient) store_vec(grad, g);
  }
  if constexpr (sums) {
    for (int b = 0; b < block; ++b) {
      add_to_double<T>(to.first + at + b * stride, first[b]);
      add_to_double<T>(to.second + at + b * stride, second[b]);
    }
  }
}

/// The same of few dimensions, column by column, with rows in the lanes.
template <typename T, bool sums, bool gradient, bool careful>
void narrow_sums_loop(const MixtureChunk<T>& c, int64_t k0, int n, const MixtureSums& to) {
  constexpr T far = math::largest<T>();
  for (int d = 0; d < c.dims(); ++d) {
    const T* x = c.s.transposed + c.panel(d);
    T* grad = c.s.grad_t + c.panel(d);
    for (int k = 0; k < n; ++k) {
      const int64_t at = (k0 + k) * c.p.stride + d;
      const T mean = c.means[at], inverse = c.scale[at];
      const T* q = c.energies(k);
      T first = T(0), second = T(0);
#pragma omp simd reduction(+ : first, second)
      for (int i = 0; i < c.padded_rows; ++i) {
        T u = math::standardise(x[i], mean, inverse);
        if constexpr (careful) {
          u = u > far ? far : u;
          u = u < -far ? -far : u;
        }
        const T w = q[i] * u;
        first += w;
        second += w * u;
        if constexpr (gradient) grad[i] = math::fma(w, inverse, grad[i]);
      }
      if constexpr (sums) {
        to.first[at] += static_cast<double>(first);
        to.second[at] += static_cast<double>(second);
      }
    }
  }
}

template <typename T, bool sums, bool gradient, bool careful>
void diagonal_sums_loop(const MixtureChunk<T>& c, int64_t k0, int n, const MixtureSums& to) {
  if (narrow<T>(c.a)) return narrow_sums_loop<T, sums, gradient, careful>(c, k0, n, to);
  for (int d = 0; d < c.p.padded_dims; d += kWidth<T>) {
    int k = 0;
    for (; k + kComponentBlock <= n; k += kComponentBlock) {
      diagonal_sums_of<T, kComponentBlock, sums, gradient, careful>(c, k, k0 + k, d, to);
    }
    for (; k < n; ++k) diagonal_sums_of<T, 1, sums, gradient, careful>(c, k, k0 + k, d, to);
  }
}

template <typename T>
void diagonal_sums(const MixtureChunk<T>& c, int64_t k0, int n, const MixtureSums& to, bool gradient) {
  if (c.careful) {
    if (to.counts == nullptr) return diagonal_sums_loop<T, false, true, true>(c, k0, n, to);
    if (gradient) return diagonal_sums_loop<T, true, true, true>(c, k0, n, to);
    return diagonal_sums_loop<T, true, false, true>(c, k0, n, to);
  }
  if (to.counts == nullptr) return diagonal_sums_loop<T, false, true, false>(c, k0, n, to);
  if (gradient) return diagonal_sums_loop<T, true, true, false>(c, k0, n, to);
  diagonal_sums_loop<T, true, false, false>(c, k0, n, to);
}

}  // namespace VF_ISA
}  // namespace vae_fast

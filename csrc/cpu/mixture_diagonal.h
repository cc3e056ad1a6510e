// Diagonal covariances: energies with rows in the lanes, sums over rows with dimensions in the lanes.
#pragma once

#include "mixture_chunk.h"

namespace vae_fast {
namespace VF_ISA {

/// Adds -sum_d (u^2 - 1) / 2 over dimensions [begin, end) to the energies l of the row block at r and of `block` components from k; those
/// from dimension 0 on begin them.
template <typename T, int block>
VF_INLINE void diagonal_energies_of(const MixtureChunk<T>& c, int r, int64_t k, int begin, int end, T* l) {
  constexpr int width = kWidth<T>;
  const int64_t stride = c.p.stride, row_stride = c.p.rows;
  const T* mean = c.means + k * stride;
  const T* inverse = c.scale + k * stride;
  for (int d0 = begin; d0 < end; d0 += kDimBlock) {
    const int d1 = d0 + kDimBlock < end ? d0 + kDimBlock : end;
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
          const Vec<T> u = kThreeOperands ? math::standardise(m, row[j], by) : math::standardise(row[j], m, by);  // squared, whichever
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

/// The energies of components [k0, k0 + n). Rows of one block and kDimSpan dimensions, and the energies, stay in the first-level cache
/// while the components pass.
template <typename T>
void diagonal_energies(const MixtureChunk<T>& c, int64_t k0, int n) {
  for (int r = 0; r < c.padded_rows; r += kRowBlock<T>) {
    for (int begin = 0; begin < c.dims(); begin += kDimSpan) {
      const int end = begin + kDimSpan < c.dims() ? begin + kDimSpan : c.dims();
      int k = 0;
      for (; k + kComponentBlock <= n; k += kComponentBlock) {
        diagonal_energies_of<T, kComponentBlock>(c, r, k0 + k, begin, end, c.energies(k) + r);
      }
      for (; k < n; ++k) diagonal_energies_of<T, 1>(c, r, k0 + k, begin, end, c.energies(k) + r);
    }
  }
}

/// What a sum over rows is of, chosen when it is compiled.
template <bool sums_, bool gradient_, bool careful_, bool narrow_>
struct SumsOf {
  static constexpr bool sums = sums_;          // of q u and q u^2
  static constexpr bool gradient = gradient_;  // sum_k q u / sigma_k
  static constexpr bool careful = careful_;    // in units of sigma throughout, and within the range
  static constexpr bool narrow = narrow_;      // rows in the lanes, of dimension d alone
};

/// A value in every lane, or a vector of them.
template <typename T, bool same>
VF_INLINE Vec<T> lanes_of(const T* p) {
  return same ? every(*p) : load_vec(p);
}

template <typename T>
VF_INLINE double sum_of_lanes(Vec<T> v) {
  double sum = 0.0;
  for (int i = 0; i < kWidth<T>; ++i) sum += static_cast<double>(v[i]);
  return sum;
}

/// With the weights q in place of the energies: adds q u and q u^2 to the sums, and sum_k q u / sigma_k to the chunk's (negative) gradient.
/// Where that is in range the loop has t = x - mean in place of u = t / sigma, an operation less: units come at its end.
template <typename T, int block, class Of>
VF_INLINE void diagonal_sums_of(const MixtureChunk<T>& c, int k, int64_t component, int d, const MixtureSums& to) {
  const int64_t stride = c.p.stride, at = component * stride + d, weight_stride = c.p.rows;
  Vec<T> mean[block], inverse[block], slope[block], first[block], second[block];
  for (int b = 0; b < block; ++b) {
    mean[b] = lanes_of<T, Of::narrow>(c.means + at + b * stride);
    inverse[b] = lanes_of<T, Of::narrow>(c.scale + at + b * stride);
    slope[b] = Of::careful ? inverse[b] : inverse[b] * inverse[b];
    first[b] = second[b] = Vec<T>{};
    if constexpr (Of::narrow) continue;
    // Where rows are long the next components' values are too far apart for the processor to foresee.
    const int64_t next = at + (block + b) * stride;
    __builtin_prefetch(c.means + next);
    __builtin_prefetch(c.scale + next);
    if constexpr (Of::sums) {
      for (int line = 0; line < kWidth<T>; line += 8) {
        __builtin_prefetch(to.first + next + line, 1);
        __builtin_prefetch(to.second + next + line, 1);
      }
    }
  }
  const T* q = c.energies(k);
  const T* x = (Of::narrow ? c.s.transposed : c.s.rows) + c.panel(d);
  T* grad = (Of::narrow ? c.s.grad_t : c.s.grad) + c.panel(d);
  const int steps = Of::narrow ? c.padded_rows / kWidth<T> : c.rows;
  for (int i = 0; i < steps; ++i, x += kWidth<T>, grad += kWidth<T>, q += Of::narrow ? kWidth<T> : 1) {
    const Vec<T> row = load_vec(x);
    Vec<T> g = Of::gradient ? load_vec(grad) : Vec<T>{};
    for (int b = 0; b < block; ++b) {
      Vec<T> u = Of::careful ? math::standardise(row, mean[b], inverse[b]) : row - mean[b];
      if constexpr (Of::careful) {
        const Vec<T> far = every(math::largest<T>());
        u = u > far ? far : (u < -far ? -far : u);
      }
      const Vec<T> w = lanes_of<T, !Of::narrow>(q + b * weight_stride) * u;
      if constexpr (Of::sums) {
        first[b] += w;
        second[b] = madd(w, u, second[b]);
      }
      if constexpr (Of::gradient) g = madd(w, slope[b], g);
    }
    if constexpr (Of::gradient) store_vec(grad, g);
  }
  if constexpr (Of::sums) {
    for (int b = 0; b < block; ++b) {
      const int64_t place = at + b * stride;
      if constexpr (!Of::careful) {
        const Vec<T> unit = lanes_of<T, Of::narrow>(c.scale + place);
        first[b] *= unit;
        second[b] *= unit * unit;
      }
      if constexpr (Of::narrow) {
        to.first[place] += sum_of_lanes<T>(first[b]);
        to.second[place] += sum_of_lanes<T>(second[b]);
      } else {
        add_to_double<T>(to.first + place, first[b]);
        add_to_double<T>(to.second + place, second[b]);
      }
    }
  }
}

template <typename T, class Of>
void diagonal_sums_loop(const MixtureChunk<T>& c, int64_t k0, int n, const MixtureSums& to) {
  const int dims = Of::narrow ? c.dims() : c.p.padded_dims;
  for (int d = 0; d < dims; d += Of::narrow ? 1 : kWidth<T>) {
    int k = 0;
    for (; k + kSumsBlock <= n; k += kSumsBlock) diagonal_sums_of<T, kSumsBlock, Of>(c, k, k0 + k, d, to);
    for (; k < n; ++k) diagonal_sums_of<T, 1, Of>(c, k, k0 + k, d, to);
  }
}

template <typename T, bool sums, bool gradient>
void diagonal_sums_of_range(const MixtureChunk<T>& c, int64_t k0, int n, const MixtureSums& to) {
  if (narrow<T>(c.a)) {
    return c.moderate ? diagonal_sums_loop<T, SumsOf<sums, gradient, false, true>>(c, k0, n, to)
                      : diagonal_sums_loop<T, SumsOf<sums, gradient, true, true>>(c, k0, n, to);
  }
  c.moderate ? diagonal_sums_loop<T, SumsOf<sums, gradient, false, false>>(c, k0, n, to)
             : diagonal_sums_loop<T, SumsOf<sums, gradient, true, false>>(c, k0, n, to);
}

template <typename T>
void diagonal_sums(const MixtureChunk<T>& c, int64_t k0, int n, const MixtureSums& to, bool gradient) {
  if (to.counts == nullptr) return diagonal_sums_of_range<T, false, true>(c, k0, n, to);
  gradient ? diagonal_sums_of_range<T, true, true>(c, k0, n, to) : diagonal_sums_of_range<T, true, false>(c, k0, n, to);
}

}  // namespace VF_ISA
}  // namespace vae_fast

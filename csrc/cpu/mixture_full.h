// Full and tied covariances. With t = x - mean and the upper triangular factor P: u = t P, and everything is a small matrix product with
// rows or dimensions in the lanes.
#pragma once

#include "mixture_chunk.h"

namespace vae_fast {
namespace VF_ISA {

/// sum[b] = sum over d in [d0, d1) of v[d] m[d, b], one row block.
template <typename T, int block>
VF_INLINE void product(const T* v, int64_t v_stride, const T* m, int64_t m_stride, int d0, int d1, Vec<T> (&sum)[block][kRowVectors]) {
  for (int b = 0; b < block; ++b) {
    for (int j = 0; j < kRowVectors; ++j) sum[b][j] = Vec<T>{};
  }
  for (int d = d0; d < d1; ++d) {
    Vec<T> row[kRowVectors];
    for (int j = 0; j < kRowVectors; ++j) row[j] = load_vec(v + d * v_stride + j * kWidth<T>);
    for (int b = 0; b < block; ++b) {
      const Vec<T> by = every(m[d * m_stride + b]);
      for (int j = 0; j < kRowVectors; ++j) sum[b][j] = madd(row[j], by, sum[b][j]);
    }
  }
}

/// f(d, sums) for the columns of a product, `kComponentBlock` or one at a time; column block [d, d + block) takes rows range(d, block).
template <typename T, class Range, class F>
VF_INLINE void columns(const T* v, int64_t v_stride, const T* m, int dims, const Range& range, const F& f) {
  int d = 0;
  for (; d + kComponentBlock <= dims; d += kComponentBlock) {
    Vec<T> sum[kComponentBlock][kRowVectors];
    const auto used = range(d, kComponentBlock);
    product(v, v_stride, m + d, dims, used.first, used.last, sum);
    f(d, kComponentBlock, sum);
  }
  for (; d < dims; ++d) {
    Vec<T> sum[1][kRowVectors];
    const auto used = range(d, 1);
    product(v, v_stride, m + d, dims, used.first, used.last, sum);
    f(d, 1, sum);
  }
}

struct IntRange {
  int first, last;
};

/// Differences of one row block from a component's mean, transposed.
template <typename T>
VF_INLINE void differences(const MixtureChunk<T>& c, int r, int64_t component) {
  const T* mean = c.means + component * c.p.stride;
  for (int d = 0; d < c.dims(); ++d) {
    const int64_t at = static_cast<int64_t>(d) * c.p.rows + r;
    for (int j = 0; j < kRowVectors; ++j) {
      store_vec(c.s.difference_t + at + j * kWidth<T>, load_vec(c.s.transposed + at + j * kWidth<T>) - every(mean[d]));
    }
  }
}

/// The energies of components [k0, k0 + n).
template <typename T>
void full_energies(const MixtureChunk<T>& c, int64_t k0, int n) {
  const int dims = c.dims();
  for (int k = 0; k < n; ++k) {
    const T* factor = c.scale + (k0 + k) * c.a.factor_stride;
    for (int r = 0; r < c.padded_rows; r += kRowBlock<T>) {
      differences(c, r, k0 + k);
      Vec<T> l[kRowVectors], part[kRowVectors];
      for (int j = 0; j < kRowVectors; ++j) {
        l[j] = part[j] = Vec<T>{};
      }
      const auto upper = [](int d, int block) { return IntRange{0, d + block}; };
      columns(c.s.difference_t + r, c.p.rows, factor, dims, upper, [&](int d, int block, const auto& u) {
        for (int j = 0; j < kRowVectors; ++j) {
          for (int b = 0; b < block; ++b) part[j] = madd(u[b][j], u[b][j], part[j] - every(T(1)));
        }
        if ((d + block) % kDimBlock != 0 && d + block != dims) return;
        for (int j = 0; j < kRowVectors; ++j) {
          l[j] = madd(every(T(-0.5)), part[j], l[j]);
          part[j] = Vec<T>{};
        }
      });
      for (int j = 0; j < kRowVectors; ++j) store_vec(c.energies(k) + r + j * kWidth<T>, l[j]);
    }
  }
  if (!c.careful) return;
  // A difference of infinities, far away, is a density of zero, unless the row itself is not a number.
  for (int i = 0; i < c.rows; ++i) {
    if (!c.row_is_number(i)) continue;
    for (int k = 0; k < n; ++k) {
      T& l = c.energies(k)[i];
      l = l == l ? l : -math::infinity<T>();
    }
  }
}

/// Adds q P u = q P P^T t of one component to the chunk's transposed (negative) gradient.
template <typename T>
void full_gradient(const MixtureChunk<T>& c, const T* q, int64_t component) {
  const int dims = c.dims();
  const T* factor = c.scale + component * c.a.factor_stride;
  const T* transposed = static_cast<const T*>(c.a.transposed) + component * c.a.factor_stride;
  const int64_t stride = c.p.rows;
  for (int r = 0; r < c.padded_rows; r += kRowBlock<T>) {
    differences(c, r, component);
    const auto upper = [](int d, int block) { return IntRange{0, d + block}; };
    columns(c.s.difference_t + r, stride, factor, dims, upper, [&](int d, int block, const auto& u) {
      for (int b = 0; b < block; ++b) {
        T* y = c.s.y + (d + b) * stride + r;
        for (int j = 0; j < kRowVectors; ++j) store_vec(y + j * kWidth<T>, u[b][j]);
        if (!c.careful) continue;
        for (int i = 0; i < kRowBlock<T>; ++i) y[i] = q[r + i] == T(0) ? T(0) : y[i];
      }
    });
    const auto lower = [dims](int d, int) { return IntRange{d, dims}; };
    columns(c.s.y + r, stride, transposed, dims, lower, [&](int d, int block, const auto& z) {
      for (int b = 0; b < block; ++b) {
        for (int j = 0; j < kRowVectors; ++j) {
          T* at = c.s.grad_t + (d + b) * stride + r + j * kWidth<T>;
          store_vec(at, madd(load_vec(q + r + j * kWidth<T>), z[b][j], load_vec(at)));
        }
      }
    });
  }
}

/// Adds sum over rows of (q t_i) t_j to second[i, j], for `block` rows i from i0 and one vector of columns j.
template <typename T, int block>
VF_INLINE void outer_products(const MixtureChunk<T>& c, int i0, int j, double* second) {
  constexpr int width = kWidth<T>;
  Vec<T> sum[block];
  for (int b = 0; b < block; ++b) sum[b] = Vec<T>{};
  const T* t = c.s.difference + c.panel(j);
  const T* weighted = c.s.weighted + c.panel(i0 / width * width) + i0 % width;
  for (int i = 0; i < c.rows; ++i, t += width, weighted += width) {
    const Vec<T> row = load_vec(t);
    for (int b = 0; b < block; ++b) sum[b] = madd(every(weighted[b]), row, sum[b]);
  }
  for (int b = 0; b < block; ++b) add_to_double<T>(second + (i0 + b) * static_cast<int64_t>(c.p.stride) + j, sum[b]);
}

/// The same for all rows from i on that fill blocks, and the columns that are not below the diagonal; returns the first row that is left.
template <typename T, int block>
VF_INLINE int outer_blocks(const MixtureChunk<T>& c, int i, double* second) {
  for (; i + block <= c.dims(); i += block) {
    for (int j = i / kWidth<T> * kWidth<T>; j < c.p.padded_dims; j += kWidth<T>) outer_products<T, block>(c, i, j, second);
  }
  return i;
}

/// Rows of a block: within a panel, and enough sums that a multiply-add need not wait for the one before it.
template <typename T>
constexpr int kOuterBlock = kWidth<T> < 8 ? kWidth<T> : 8;

/// Whether sums over the chunk's rows of q t_i t_j may leave T's range, where the gradients that are made of them, in double, need not.
template <typename T>
bool far_moments(const MixtureChunk<T>& c, const T* q) {
  T most = T(0);
#pragma omp simd reduction(max : most)
  for (int i = 0; i < c.padded_rows; ++i) {
    const T size = math::abs(q[i]);
    most = size > most ? size : most;
  }
  return !(c.reach * (1.0 + c.reach) * static_cast<double>(most) * c.rows < 0.1 * static_cast<double>(math::largest<T>()));
}

/// full_moments in double, row by row.
template <typename T>
void full_moments_in_double(const MixtureChunk<T>& c, const T* q, int64_t component, const MixtureSums& to) {
  constexpr int width = kWidth<T>;
  const int64_t stride = c.p.stride;
  const int dims = c.dims();
  const T* mean = c.means + component * stride;
  double* first = to.first + component * stride;
  double* second = to.second == nullptr ? nullptr : to.second + component * to.second_stride;
  T* t = c.s.difference;
  for (int i = 0; i < c.rows; ++i) {
    if (q[i] == T(0)) continue;  // what is no component's may be infinitely far from it
    for (int d = 0; d < dims; ++d) t[d] = c.s.rows[c.panel(d / width * width) + i * width + d % width] - mean[d];
    for (int d = 0; d < dims; ++d) {
      const double weighted = static_cast<double>(q[i]) * static_cast<double>(t[d]);
      first[d] += weighted;
      for (int e = d; second != nullptr && e < dims; ++e) second[d * stride + e] += weighted * static_cast<double>(t[e]);
    }
  }
}

/// Adds one component's sums over the chunk's rows.
template <typename T>
void full_moments(const MixtureChunk<T>& c, const T* q, int64_t component, const MixtureSums& to) {
  if (far_moments(c, q)) return full_moments_in_double(c, q, component, to);
  const int64_t stride = c.p.stride;
  const T* mean = c.means + component * stride;
  double* first = to.first + component * stride;
  for (int d = 0; d < c.p.padded_dims; d += kWidth<T>) {
    const Vec<T> m = load_vec(mean + d);
    Vec<T> sum = Vec<T>{};
    int64_t at = c.panel(d);
    for (int i = 0; i < c.rows; ++i, at += kWidth<T>) {
      const Vec<T> t = load_vec(c.s.rows + at) - m, w = every(q[i]) * t;
      store_vec(c.s.difference + at, t);
      store_vec(c.s.weighted + at, w);
      sum += w;
    }
    add_to_double<T>(first + d, sum);
  }
  if (to.second == nullptr) return;
  double* second = to.second + component * to.second_stride;
  int i = 0;
  i = outer_blocks<T, kOuterBlock<T>>(c, i, second);
  i = outer_blocks<T, kOuterBlock<T> / 2>(c, i, second);
  outer_blocks<T, 1>(c, i, second);
}

template <typename T>
void full_sums(const MixtureChunk<T>& c, int64_t k0, int n, const MixtureSums& to, bool gradient) {
  for (int k = 0; k < n; ++k) {
    if (gradient) full_gradient(c, c.energies(k), k0 + k);
    if (to.counts != nullptr) full_moments(c, c.energies(k), k0 + k, to);
  }
}

}  // namespace VF_ISA
}  // namespace vae_fast

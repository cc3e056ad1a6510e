// Softmaxes over classes: along memory where the classes are the innermost dimension, across cells elsewhere.
#pragma once

#include "../math/softmax.h"
#include "group_sums.h"
#include "logsumexp.h"
#include "sparse.h"
#include "tile.h"

namespace vae_fast {
namespace VF_ISA {

using math::counted;
using math::Normaliser;

/// Calls f(k, n) for the pieces of [0, classes).
template <class F>
inline void for_pieces_of(int64_t classes, const F& f) {
  for (int64_t k = 0; k < classes; k += kTile) f(k, static_cast<int>(classes - k < kTile ? classes - k : kTile));
}

template <typename T>
inline Normaliser<T> normaliser_of(const Stream& logits, int64_t at, int64_t classes) {
  alignas(64) T buffer[kTile];
  T top = -math::infinity<T>();
  for_pieces_of(classes, [&](int64_t k, int n) {
    const T* v = load_run(logits.data, logits.dtype, at + k, n, buffer);
    T most = top;
#pragma omp simd reduction(max : most)
    for (int i = 0; i < n; ++i) most = v[i] > most ? v[i] : most;
    top = most;
  });
  top = shift_of(top);
  double total = 0.0;
  for_pieces_of(classes, [&](int64_t k, int n) {
    const T* v = load_run(logits.data, logits.dtype, at + k, n, buffer);
    T s = T(0);
#pragma omp simd reduction(+ : s)
    for (int i = 0; i < n; ++i) s += math::exp(v[i] - top);
    total += static_cast<double>(s);
  });
  return {top, math::log(static_cast<T>(total))};
}

/// What is given of the classes of one cell along memory, one struct per Target:
///   value(norm)      the sum of x_k l_k
///   total()          sum x
///   add(k, n, g, p)  adds g x to gradients k .. k + n - 1, which are in p
template <typename T>
struct IndexTarget {
  int64_t index;
  const Stream& logits;
  int64_t at;

  IndexTarget(const SoftmaxArgs& a, int64_t row, int64_t cell, int64_t logits_at)
      : index(a.index[row * a.outer * a.inner + cell]), logits(a.logits), at(logits_at) {}
  double value(const Normaliser<T>& norm) const {
    T logit{};
    widen(logits.data, logits.dtype, at + index, 1, &logit);
    return static_cast<double>(norm.log_share(logit));
  }
  T total() const { return T(1); }
  void add(int64_t k, int n, T g, T* p) const {
    if (index >= k && index < k + n) p[index - k] += g;
  }
};

template <typename T>
struct DenseTarget {
  const SoftmaxArgs& a;
  int64_t row, at, classes;
  double counts = 0.0;

  DenseTarget(const SoftmaxArgs& args, int64_t r, int64_t, int64_t logits_at) : a(args), row(r), at(logits_at), classes(args.k) {
    alignas(64) T buffer[kTile];
    for_pieces_of(classes, [&](int64_t k, int n) { counts += sum(load(a.x, Rect{row, k, 1, n}, classes, buffer), n); });
  }
  double value(const Normaliser<T>& norm) const {
    alignas(64) T x_buffer[kTile], buffer[kTile], products[kTile];
    constexpr int kPiece = 64;  // the products have one sign: what is lost of a long sum in float would not cancel
    double s = 0.0;
    for_pieces_of(classes, [&](int64_t k, int n) {
      const T* x = load(a.x, Rect{row, k, 1, n}, classes, x_buffer);
      const T* v = load_run(a.logits.data, a.logits.dtype, at + k, n, buffer);
      VF_SIMD
      for (int i = 0; i < n; ++i) products[i] = counted(x[i], norm.log_share(v[i]));
      for (int i = 0; i < n; i += kPiece) s += sum(products + i, n - i < kPiece ? n - i : kPiece);
    });
    return s;
  }
  T total() const { return static_cast<T>(counts); }
  void add(int64_t k, int n, T g, T* p) const {
    alignas(64) T buffer[kTile];
    const T* x = load(a.x, Rect{row, k, 1, n}, classes, buffer);
    VF_SIMD
    for (int i = 0; i < n; ++i) p[i] += g * x[i];
  }
};

template <typename T>
struct SparseTarget {
  const SoftmaxArgs& a;
  const SparseRows& x;
  int64_t begin, end, at;
  mutable int64_t next;  // the gradients come in order, and so do the columns
  double counts = 0.0;

  SparseTarget(const SoftmaxArgs& args, int64_t row, int64_t, int64_t logits_at)
      : a(args), x(args.sparse), begin(place(x.offsets, x.wide, row)), end(place(x.offsets, x.wide, row + 1)), at(logits_at), next(begin) {
    for_stored(begin, end, [&](int64_t, const T* count, int n) { counts += sum(count, n); });
  }
  int64_t column(int64_t i) const { return place(x.columns, x.wide, i); }
  /// Calls f(i, counts, n) for the pieces of [from, to).
  template <class F>
  void for_stored(int64_t from, int64_t to, const F& f) const {
    constexpr int kPiece = 64;
    T count[kPiece];
    for (int64_t i = from; i < to; i += kPiece) {
      const int n = static_cast<int>(to - i < kPiece ? to - i : kPiece);
      widen(x.values, x.dtype, i, n, count);
      f(i, static_cast<const T*>(count), n);
    }
  }
  double value(const Normaliser<T>& norm) const {
    const T* logits = a.logits.dtype == dtype_of<T>() ? static_cast<const T*>(a.logits.data) + at : nullptr;
    double s = 0.0;
    for_stored(begin, end, [&](int64_t i, const T* count, int n) {
      for (int j = 0; j < n; ++j) {
        T logit{};
        if (logits != nullptr) {
          logit = logits[column(i + j)];
        } else {
          widen(a.logits.data, a.logits.dtype, at + column(i + j), 1, &logit);
        }
        s += static_cast<double>(counted(count[j], norm.log_share(logit)));
      }
    });
    return s;
  }
  T total() const { return static_cast<T>(counts); }
  void add(int64_t k, int n, T g, T* p) const {
    const int64_t from = next;
    while (next < end && column(next) < k + n) ++next;
    for_stored(from, next, [&](int64_t i, const T* count, int m) {
      for (int j = 0; j < m; ++j) p[column(i + j) - k] += g * count[j];
    });
  }
};

/// Cells [c0, c1) of a row whose classes lie along memory.
template <class Target, typename T>
double softmax_along(const SoftmaxArgs& a, int64_t row, int64_t c0, int64_t c1) {
  alignas(64) T buffer[kTile], grad[kTile];
  const T* per_row = static_cast<const T*>(a.row_grad.data);
  const T g = static_cast<T>(a.row_grad.constant) * (per_row == nullptr ? T(1) : per_row[row * a.row_grad.stride]);
  double total = 0.0;
  for (int64_t c = c0; c < c1; ++c) {
    const int64_t at = a.logits.row(row) + c * a.k;
    const Normaliser<T> norm = normaliser_of<T>(a.logits, at, a.k);
    const Target target(a, row, c, at);
    total += target.value(norm);
    if (a.grad_x.data != nullptr) {
      for_pieces_of(a.k, [&](int64_t k, int n) {
        const T* v = load_run(a.logits.data, a.logits.dtype, at + k, n, buffer);
        VF_SIMD
        for (int i = 0; i < n; ++i) grad[i] = g == T(0) ? T(0) : g * norm.log_share(v[i]);
        narrow(grad, n, a.grad_x.data, a.grad_x.dtype, a.grad_x.row(row) + k);
      });
    }
    if (a.grad.data == nullptr) continue;
    const T weight = -g * target.total();
    for_pieces_of(a.k, [&](int64_t k, int n) {
      const T* v = load_run(a.logits.data, a.logits.dtype, at + k, n, buffer);
      VF_SIMD
      for (int i = 0; i < n; ++i) grad[i] = weight * norm.share(v[i]);
      target.add(k, n, g, grad);
      narrow(grad, n, a.grad.data, a.grad.dtype, a.grad.row(row) + c * a.k + k);
    });
  }
  return total;
}

/// Cells [c0, c1) of a row whose classes lie `inner` apart, as many at a time as lie side by side: indices only.
template <typename T>
double softmax_across(const SoftmaxArgs& a, int64_t row, int64_t c0, int64_t c1) {
  constexpr int kCells = 256;
  alignas(64) T buffer[kCells], top[kCells], total[kCells], value[kCells], grad[kCells];
  int32_t index[kCells];
  const T* per_row = static_cast<const T*>(a.row_grad.data);
  const T g = static_cast<T>(a.row_grad.constant) * (per_row == nullptr ? T(1) : per_row[row * a.row_grad.stride]);
  double sums = 0.0;
  for (int64_t c = c0; c < c1;) {
    const int64_t o = c / a.inner, first = c % a.inner, left = c1 - c < a.inner - first ? c1 - c : a.inner - first;
    const int n = static_cast<int>(left < kCells ? left : kCells);
    const int64_t at = a.logits.row(row) + o * a.k * a.inner + first;
    const int64_t* given = a.index + row * a.outer * a.inner + c;
    for (int i = 0; i < n; ++i) {
      index[i] = static_cast<int32_t>(given[i]);
      widen(a.logits.data, a.logits.dtype, at + given[i] * a.inner + i, 1, value + i);
      top[i] = -math::infinity<T>();
      total[i] = T(0);
    }
    for (int64_t k = 0; k < a.k; ++k) {
      const T* v = load_run(a.logits.data, a.logits.dtype, at + k * a.inner, n, buffer);
      VF_SIMD
      for (int i = 0; i < n; ++i) top[i] = v[i] > top[i] ? v[i] : top[i];
    }
    VF_SIMD
    for (int i = 0; i < n; ++i) top[i] = shift_of(top[i]);
    for (int64_t k = 0; k < a.k; ++k) {
      const T* v = load_run(a.logits.data, a.logits.dtype, at + k * a.inner, n, buffer);
      VF_SIMD
      for (int i = 0; i < n; ++i) total[i] += math::exp(v[i] - top[i]);
    }
    VF_SIMD
    for (int i = 0; i < n; ++i) {
      total[i] = math::log(total[i]);
      value[i] = Normaliser<T>{top[i], total[i]}.log_share(value[i]);
    }
    sums += sum(value, n);
    for (int32_t k = 0; a.grad.data != nullptr && k < static_cast<int32_t>(a.k); ++k) {
      const T* v = load_run(a.logits.data, a.logits.dtype, at + k * a.inner, n, buffer);
      VF_SIMD
      for (int i = 0; i < n; ++i) {
        const T share = Normaliser<T>{top[i], total[i]}.share(v[i]);
        grad[i] = g * ((index[i] == k ? T(1) : T(0)) - share);
      }
      narrow(grad, n, a.grad.data, a.grad.dtype, a.grad.row(row) + o * a.k * a.inner + k * a.inner + first);
    }
    c += n;
  }
  return sums;
}

template <typename T>
double softmax_cells(const SoftmaxArgs& a, int64_t row, int64_t c0, int64_t c1) {
  if (a.target == Target::kDense) return softmax_along<DenseTarget<T>, T>(a, row, c0, c1);
  if (a.target == Target::kSparse) return softmax_along<SparseTarget<T>, T>(a, row, c0, c1);
  return a.inner == 1 ? softmax_along<IndexTarget<T>, T>(a, row, c0, c1) : softmax_across<T>(a, row, c0, c1);
}

}  // namespace VF_ISA
}  // namespace vae_fast

#define VF_INSTANTIATE_SOFTMAX                                                                                     \
  template double vae_fast::VF_ISA::softmax_cells<float>(const vae_fast::SoftmaxArgs&, int64_t, int64_t, int64_t); \
  template double vae_fast::VF_ISA::softmax_cells<double>(const vae_fast::SoftmaxArgs&, int64_t, int64_t, int64_t);

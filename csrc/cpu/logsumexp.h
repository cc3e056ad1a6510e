// Log-sum-exp of a dense (outer, k, inner) array over k: along memory where inner is 1, across `inner` columns at a time elsewhere.
#pragma once

#include "../math/logsumexp.h"
#include "tile.h"

namespace vae_fast {
namespace VF_ISA {

/// Weights of k elements from element k0 of one column, or of `n` columns at one k: all ones, broadcast or gathered.
template <typename T>
inline const T* weights(const LogSumExpArgs& a, int64_t o, int64_t k, int64_t i, int n, bool along_k, T* buffer) {
  if (a.w == nullptr) return nullptr;
  const T* w = static_cast<const T*>(a.w) + o * a.w_stride[0] + k * a.w_stride[1] + i * a.w_stride[2];
  const int64_t step = along_k ? a.w_stride[1] : a.w_stride[2];
  if (step == 1) return w;
  for (int j = 0; j < n; ++j) buffer[j] = w[j * step];
  return buffer;
}

template <typename T>
inline const T* load_run(const void* data, DType dtype, int64_t at, int n, T* buffer) {
  if (dtype == dtype_of<T>()) return static_cast<const T*>(data) + at;
  widen(data, dtype, at, n, buffer);
  return buffer;
}

using math::shift_of;

/// Whether any of n weights is extreme; null: all are one.
template <typename T>
inline bool any_extreme(const T* w, int n) {
  int found = 0;
  if (w == nullptr) return false;
#pragma omp simd reduction(| : found)
  for (int i = 0; i < n; ++i) found |= math::is_extreme_weight(w[i]) ? 1 : 0;
  return found != 0;
}

/// Entries and weights with the extreme weights folded into the entries, in the buffers; as they were if there are none.
template <typename T>
inline void fold(const T*& v, const T*& w, int n, T* buffer, T* w_buffer) {
  if (!any_extreme(w, n)) return;
  VF_SIMD
  for (int i = 0; i < n; ++i) {
    T a = v[i], weight = w[i];
    math::fold_extreme_weight(a, weight);
    buffer[i] = a;
    w_buffer[i] = weight;
  }
  v = buffer;
  w = w_buffer;
}

/// log w + a loses nothing to a weight of zero; the maximum is over entries of nonzero weight.
template <typename T>
void logsumexp_rows(const LogSumExpArgs& a, int64_t o0, int64_t o1) {
  alignas(64) T buffer[kTile], w_buffer[kTile];
  T* out = static_cast<T*>(a.out);
  const T low = -math::infinity<T>();
  for (int64_t o = o0; o < o1; ++o) {
    T top = low;
    for (int64_t k = 0; k < a.k; k += kTile) {
      const int n = static_cast<int>(a.k - k < kTile ? a.k - k : kTile);
      const T* v = load_run(a.a, a.dtype, o * a.k + k, n, buffer);
      const T* w = weights(a, o, k, 0, n, true, w_buffer);
      fold(v, w, n, buffer, w_buffer);
      if (w == nullptr) {
#pragma omp simd reduction(max : top)
        for (int i = 0; i < n; ++i) top = v[i] > top ? v[i] : top;
      } else {
#pragma omp simd reduction(max : top)
        for (int i = 0; i < n; ++i) {
          const T used = w[i] == T(0) ? low : v[i];
          top = used > top ? used : top;
        }
      }
    }
    const T shift = shift_of(top);
    double total = 0.0;
    for (int64_t k = 0; k < a.k; k += kTile) {
      const int n = static_cast<int>(a.k - k < kTile ? a.k - k : kTile);
      const T* v = load_run(a.a, a.dtype, o * a.k + k, n, buffer);
      const T* w = weights(a, o, k, 0, n, true, w_buffer);
      fold(v, w, n, buffer, w_buffer);
      T s = T(0);
      if (w == nullptr) {
#pragma omp simd reduction(+ : s)
        for (int i = 0; i < n; ++i) s += math::exp(v[i] - shift);
      } else {
#pragma omp simd reduction(+ : s)
        for (int i = 0; i < n; ++i) {
          const T e = w[i] * math::exp(v[i] - shift);
          s += w[i] == T(0) ? T(0) : e;
        }
      }
      total += static_cast<double>(s);
    }
    out[o] = math::log(static_cast<T>(total)) + shift;
  }
}

template <typename T>
void logsumexp_columns(const LogSumExpArgs& a, int64_t o0, int64_t o1, int64_t i0, int64_t i1) {
  alignas(64) T buffer[kTile], w_buffer[kTile], top[kTile], total[kTile];
  T* out = static_cast<T*>(a.out);
  const T low = -math::infinity<T>();
  for (int64_t o = o0; o < o1; ++o) {
    for (int64_t i = i0; i < i1; i += kTile) {
      const int n = static_cast<int>(i1 - i < kTile ? i1 - i : kTile);
      VF_SIMD
      for (int j = 0; j < n; ++j) top[j] = low;
      for (int64_t k = 0; k < a.k; ++k) {
        const T* v = load_run(a.a, a.dtype, (o * a.k + k) * a.inner + i, n, buffer);
        const T* w = weights(a, o, k, i, n, false, w_buffer);
        fold(v, w, n, buffer, w_buffer);
        VF_SIMD
        for (int j = 0; j < n; ++j) {
          const T used = w != nullptr && w[j] == T(0) ? low : v[j];
          top[j] = used > top[j] ? used : top[j];
        }
      }
      VF_SIMD
      for (int j = 0; j < n; ++j) {
        top[j] = shift_of(top[j]);
        total[j] = T(0);
      }
      for (int64_t k = 0; k < a.k; ++k) {
        const T* v = load_run(a.a, a.dtype, (o * a.k + k) * a.inner + i, n, buffer);
        const T* w = weights(a, o, k, i, n, false, w_buffer);
        fold(v, w, n, buffer, w_buffer);
        if (w == nullptr) {
          VF_SIMD
          for (int j = 0; j < n; ++j) total[j] += math::exp(v[j] - top[j]);
        } else {
          VF_SIMD
          for (int j = 0; j < n; ++j) {
            const T e = w[j] * math::exp(v[j] - top[j]);
            total[j] += w[j] == T(0) ? T(0) : e;
          }
        }
      }
      VF_SIMD
      for (int j = 0; j < n; ++j) out[o * a.inner + i + j] = math::log(total[j]) + top[j];
    }
  }
}

template <typename T>
void logsumexp(const LogSumExpArgs& a, int64_t o0, int64_t o1, int64_t i0, int64_t i1) {
  if (a.inner == 1) {
    logsumexp_rows<T>(a, o0, o1);
  } else {
    logsumexp_columns<T>(a, o0, o1, i0, i1);
  }
}

/// Rows along memory without weights: straight from the array to its gradient.
template <typename T>
void logsumexp_backward_rows(const LogSumExpBackwardArgs& b, int64_t o0, int64_t o1) {
  alignas(64) T buffer[kTile], grad_buffer[kTile];
  const LogSumExpArgs& a = b.forward;
  const bool direct = a.dtype == dtype_of<T>();
  for (int64_t o = o0; o < o1; ++o) {
    const T l = static_cast<const T*>(a.out)[o], g = static_cast<const T*>(b.grad_out)[o * b.grad_out_stride[0]];
    for (int64_t k = 0; k < a.k; k += kTile) {
      const int n = static_cast<int>(a.k - k < kTile ? a.k - k : kTile);
      const int64_t at = o * a.k + k;
      const T* __restrict v = load_run(a.a, a.dtype, at, n, buffer);
      T* __restrict grad = direct ? static_cast<T*>(b.grad_a) + at : grad_buffer;
      VF_SIMD
      for (int j = 0; j < n; ++j) grad[j] = math::logsumexp_gradient(g, v[j], l);
      if (!direct) narrow(grad, n, b.grad_a, a.dtype, at);
    }
  }
}

template <typename T>
void logsumexp_backward(const LogSumExpBackwardArgs& b, int64_t o0, int64_t o1, int64_t i0, int64_t i1) {
  alignas(64) T buffer[kTile], w_buffer[kTile], l[kTile], g[kTile], grad[kTile], grad_w[kTile];
  const LogSumExpArgs& a = b.forward;
  const T* out = static_cast<const T*>(a.out);
  const T* upstream = static_cast<const T*>(b.grad_out);
  const bool along_k = a.inner == 1;
  if (along_k && a.w == nullptr && b.grad_a != nullptr && b.grad_w == nullptr) return logsumexp_backward_rows<T>(b, o0, o1);
  for (int64_t o = o0; o < o1; ++o) {
    for (int64_t i = i0; i < i1; i += kTile) {
      const int columns = along_k ? 1 : static_cast<int>(i1 - i < kTile ? i1 - i : kTile);
      for (int j = 0; j < columns; ++j) {
        l[j] = out[o * a.inner + i + j];
        g[j] = upstream[o * b.grad_out_stride[0] + (i + j) * b.grad_out_stride[1]];
      }
      if (along_k) {
        VF_SIMD
        for (int j = 0; j < kTile; ++j) {
          l[j] = l[0];
          g[j] = g[0];
        }
      }
      for (int64_t k = 0; k < a.k; k += along_k ? kTile : 1) {
        const int n = !along_k ? columns : static_cast<int>(a.k - k < kTile ? a.k - k : kTile);
        const int64_t at = (o * a.k + k) * a.inner + i;
        const T* v = load_run(a.a, a.dtype, at, n, buffer);
        const T* w = weights(a, o, k, i, n, along_k, w_buffer);
        if (w == nullptr) {
          VF_SIMD
          for (int j = 0; j < n; ++j) grad[j] = math::logsumexp_gradient(g[j], v[j], l[j]);
        } else {
          VF_SIMD
          for (int j = 0; j < n; ++j) {
            const math::LogSumExpGradient<T> d(g[j], v[j], l[j], w[j]);
            grad[j] = d.of_a;
            grad_w[j] = d.of_w;
          }
        }
        if (b.grad_a != nullptr) narrow(grad, n, b.grad_a, a.dtype, at);
        if (b.grad_w != nullptr) narrow(grad_w, n, b.grad_w, dtype_of<T>(), at);
      }
    }
  }
}

inline void scale_values(void* data, DType dtype, int64_t begin, int64_t end, double by) {
  alignas(64) double buffer[kTile];
  for (int64_t i = begin; i < end; i += kTile) {
    const int n = static_cast<int>(end - i < kTile ? end - i : kTile);
    widen(data, dtype, i, n, buffer);
    VF_SIMD
    for (int j = 0; j < n; ++j) buffer[j] *= by;
    narrow(buffer, n, data, dtype, i);
  }
}

}  // namespace VF_ISA
}  // namespace vae_fast

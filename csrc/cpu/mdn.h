// Mixture density networks: every row brings its own components. Runs of whole rows are flattened, so that the loops over elements are long
// however few components and dimensions there are.
#pragma once

#include "../math/mdn.h"
#include "../math/scale.h"
#include "logsumexp.h"
#include "tile.h"

namespace vae_fast {
namespace VF_ISA {

/// Rows at a time: as many as give a few thousand elements, at least one.
inline int mdn_tile_rows(const MdnArgs& a) {
  const int64_t per_row = a.components * a.dims, rows = per_row > 0 ? 4096 / per_row : 256;
  return static_cast<int>(rows < 1 ? 1 : rows > 256 ? 256 : rows);
}

/// Buffers of a tile: `elements` are (row, component, dimension), `sums` (row, component). Once loaded, `prior` is the rows' weights and
/// `log_total` the log of what normalises e^logits.
template <typename T>
struct MdnTile {
  const MdnArgs& a;
  int components, dims;
  T *y, *means, *scale, *energy, *weight, *logits, *l, *share, *prior, *shift, *log_total;
  int64_t count = 0;
  int64_t first = 0;
  int rows = 0;

  MdnTile(const MdnArgs& args, T* base) : a(args), components(static_cast<int>(args.components)), dims(static_cast<int>(args.dims)) {
    const auto take = [&](int64_t n) {
      T* const field = base == nullptr ? nullptr : base + count;
      count += (n + 15) / 16 * 16;
      return field;
    };
    const int64_t n = mdn_tile_rows(a), m = n * components, e = m * dims;
    y = take(e), means = take(e), scale = take(e), energy = take(e), weight = take(e);
    logits = take(m), l = take(m), share = take(m), prior = take(m), shift = take(n), log_total = take(n);
  }

  int sums() const { return rows * components; }
  int elements() const { return sums() * dims; }
  Rect rect(int columns) const { return Rect{first, 0, rows, columns}; }

  void fetch(const Stream& s, int columns, T* to) const {
    const T* from = load(s, rect(columns), columns, to);
    if (from != to) memcpy(to, from, sizeof(T) * static_cast<size_t>(rows) * static_cast<size_t>(columns));
  }

  /// to[s, d] = from[s] for every sum: a value per component, for each dimension.
  void over_dims(const T* from, T* to) const {
    with_short(dims, [&](auto n) {
      VF_SIMD
      for (int i = 0; i < sums(); ++i) {
        for (int d = 0; d < n; ++d) to[i * n + d] = from[i];
      }
    });
  }

  /// out = e^(v - shift) with each row's shift its maximum (0 if that is infinite); calls f(row, shift, sum of the row's out).
  template <class F>
  void exponentials(const T* v, T* out, const F& f) const {
    for (int i = 0; i < rows; ++i) {
      T top = -math::infinity<T>();
      for (int k = 0; k < components; ++k) top = v[i * components + k] > top ? v[i * components + k] : top;
      shift[i] = shift_of(top);
      for (int k = 0; k < components; ++k) out[i * components + k] = v[i * components + k] - shift[i];
    }
    const int n = sums();
    VF_SIMD
    for (int i = 0; i < n; ++i) out[i] = math::exp(out[i]);
    for (int i = 0; i < rows; ++i) {
      T total = T(0);
      for (int k = 0; k < components; ++k) total += out[i * components + k];
      f(i, shift[i], total);
    }
  }

  void load_rows(int64_t r, int n) {
    first = r;
    rows = n;
    fetch(a.logits, components, logits);
    // Relative to the largest: energies would be lost beside logits that are large.
    exponentials(logits, prior, [&](int i, T top, T total) {
      log_total[i] = math::log(total);
      for (int k = 0; k < components; ++k) {
        logits[i * components + k] -= top;
        prior[i * components + k] /= total;
      }
    });
    fetch(a.means, components * dims, means);
    if (a.shared_scale) {
      fetch(a.scale, components, energy);
      over_dims(energy, scale);
    } else {
      fetch(a.scale, components * dims, scale);
    }
    const T* rows_of_y = load(a.y, rect(dims), dims, energy);
    with_short(dims, [&](auto n) {
      for (int i = 0, e = 0; i < rows; ++i) {
        for (int k = 0; k < components; ++k, e += n) {
          for (int d = 0; d < n; ++d) y[e + d] = rows_of_y[i * n + d];
        }
      }
    });
  }

  /// l = logit - sum over dimensions of the energies.
  void energies() const {
    const int n = elements();
    const T floor = static_cast<T>(a.floor);
    VF_SIMD
    for (int i = 0; i < n; ++i) energy[i] = math::MdnElement<T>(y[i], means[i], scale[i], floor).energy;
    sum_runs(energy, sums(), dims, l);
    VF_SIMD
    for (int i = 0; i < sums(); ++i) l[i] = logits[i] - l[i];
  }
};

template <typename T>
int64_t mdn_scratch_bytes(const MdnArgs& a) {
  return static_cast<int64_t>(sizeof(T)) * MdnTile<T>(a, nullptr).count;
}

template <class F>
inline void for_each_tile(const MdnArgs& a, int64_t r0, int64_t r1, const F& f) {
  const int step = mdn_tile_rows(a);
  for (int64_t r = r0; r < r1; r += step) f(r, static_cast<int>(r1 - r < step ? r1 - r : step));
}

template <typename T>
void mdn_rows(const MdnArgs& a, int64_t r0, int64_t r1, void* scratch) {
  MdnTile<T> t(a, static_cast<T*>(scratch));
  const double constant = -0.91893853320467274178 * static_cast<double>(a.dims);  // log(2 pi) / 2
  T* out = static_cast<T*>(a.log_prob);
  for_each_tile(a, r0, r1, [&](int64_t r, int n) {
    t.load_rows(r, n);
    t.energies();
    t.exponentials(t.l, t.share, [&](int i, T shift, T total) {
      const double joint = static_cast<double>(shift) + static_cast<double>(math::log(total));
      out[r + i] = static_cast<T>(joint - static_cast<double>(t.log_total[i]) + constant);
    });
  });
}

template <typename T>
void mdn_backward_rows(const MdnBackwardArgs& b, int64_t r0, int64_t r1, void* scratch) {
  const MdnArgs& a = b.forward;
  MdnTile<T> t(a, static_cast<T*>(scratch));
  const T* per_row = static_cast<const T*>(b.grad.data);
  const int components = t.components, dims = t.dims;
  const T floor = static_cast<T>(a.floor);
  for_each_tile(a, r0, r1, [&](int64_t r, int n) {
    t.load_rows(r, n);
    t.energies();
    // share becomes q = g p(k | y); weight g, or 0 in a row that no component explains
    t.exponentials(t.l, t.share, [&](int i, T, T total) {
      const T g = static_cast<T>(b.grad.constant) * (per_row == nullptr ? T(1) : per_row[(r + i) * b.grad.stride]);
      t.weight[i] = total == T(0) ? T(0) : g;
      for (int k = 0; k < components; ++k) t.share[i * components + k] *= total == T(0) ? T(0) : g / total;
    });
    if (b.grad_logits.data != nullptr) {
      for (int i = 0, at = 0; i < n; ++i) {
        for (int k = 0; k < components; ++k, ++at) t.prior[at] = t.share[at] - t.weight[i] * t.prior[at];
      }
      store(t.prior, b.grad_logits, t.rect(components), components);
    }
    t.over_dims(t.share, t.weight);
    const int elements = t.elements();
    VF_SIMD
    for (int i = 0; i < elements; ++i) {
      const math::MdnElement<T> e(t.y[i], t.means[i], t.scale[i], floor);
      t.means[i] = math::times(t.weight[i], e.d_mean);
      t.scale[i] = math::times(t.weight[i], e.d_scale);
    }
    if (b.grad_means.data != nullptr) store(t.means, b.grad_means, t.rect(components * dims), components * dims);
    if (b.grad_scale.data != nullptr && a.shared_scale) {
      sum_runs(t.scale, t.sums(), dims, t.energy);
      store(t.energy, b.grad_scale, t.rect(components), components);
    } else if (b.grad_scale.data != nullptr) {
      store(t.scale, b.grad_scale, t.rect(components * dims), components * dims);
    }
    if (b.grad_y.data == nullptr) return;
    for (int i = 0; i < t.rows; ++i) {
      for (int d = 0; d < dims; ++d) {
        T total = T(0);
        for (int k = 0; k < components; ++k) total += t.means[(i * components + k) * dims + d];
        t.energy[i * dims + d] = -total;
      }
    }
    store(t.energy, b.grad_y, t.rect(dims), dims);
  });
}

}  // namespace VF_ISA
}  // namespace vae_fast

// Mixtures over cells: a tile of cells with its parameters one below another, so that every loop runs along cells however the tensor lies.
// Included last by the one file of each instruction set that has the groups.
#pragma once

#include <utility>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-thread-jumps")  // as for the terms of row sums, see row_terms.h
#endif

#include "../group_table.h"
#include "../math/cells.h"
#include "group_sums.h"
#include "logsumexp.h"
#include "simd.h"
#include "tile.h"

namespace vae_fast {
namespace VF_ISA {

constexpr int kTileCells = 64;
constexpr int64_t kTileBytes = int64_t{128} << 10;  // of its parameters, unless there are very many: half of a second-level cache

/// to[c * to_stride + r] = from[r * from_stride + c].
template <typename T>
inline void transpose(const T* from, int rows, int columns, int64_t from_stride, T* to, int64_t to_stride) {
  constexpr int width = kWidth<T>;
  int r = 0;
  for (; r + width <= rows; r += width) {
    int c = 0;
    for (; c + width <= columns; c += width) {
      Vec<T> v[width];
      for (int i = 0; i < width; ++i) v[i] = load_vec(from + (r + i) * from_stride + c);
      transpose<T>(v);
      for (int i = 0; i < width; ++i) store_vec(to + (c + i) * to_stride + r, v[i]);
    }
    for (; c < columns; ++c) {
      for (int i = r; i < r + width; ++i) to[c * to_stride + i] = from[i * from_stride + c];
    }
  }
  for (; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) to[c * to_stride + r] = from[r * from_stride + c];
  }
}

/// The buffers of a tile: parameters, and what their places take after: derivatives; per component a weight and a log-density.
template <typename T>
struct GroupTile {
  int components, parameters, cells;
  T *params, *staged, *weight, *joint, *data, *top, *total, *joint_top, *joint_total;
  int64_t count = 0;

  GroupTile(const GroupArgs& a, int slots, int data_count, T* base)
      : components(static_cast<int>(a.components)), parameters(slots * static_cast<int>(a.components)), cells(kTileCells) {
    while (cells > 16 && int64_t{cells} * parameters * static_cast<int64_t>(sizeof(T)) > kTileBytes) cells /= 2;
    const auto take = [&](int64_t n) {
      T* const field = base == nullptr ? nullptr : base + count;
      count += n * cells;
      return field;
    };
    params = take(parameters), staged = take(parameters), weight = take(components), joint = take(components), data = take(data_count);
    top = take(1), total = take(1), joint_top = take(1), joint_total = take(1);
  }

  /// top[i] = the largest v[k, i] (0 if that is infinite), out = e^(v - top) and total their sum.
  void exponentials(const T* v, int n, T* largest, T* out, T* sum) const {
    VF_SIMD
    for (int i = 0; i < n; ++i) largest[i] = v[i];
    for (int k = 1; k < components; ++k) {
      const T* __restrict row = v + k * cells;
      VF_SIMD
      for (int i = 0; i < n; ++i) largest[i] = row[i] > largest[i] ? row[i] : largest[i];
    }
    VF_SIMD
    for (int i = 0; i < n; ++i) {
      largest[i] = shift_of(largest[i]);
      sum[i] = T(0);
    }
    for (int k = 0; k < components; ++k) {
      const T* const row = v + k * cells;  // with the index in the loop gcc does not vectorise it
      T* const to = out + k * cells;
      VF_SIMD
      for (int i = 0; i < n; ++i) {
        const T e = math::exp(row[i] - largest[i]);
        to[i] = e;
        sum[i] += e;
      }
    }
  }
};

/// Columns of a tile: `count` of them, `stride` apart. All loops over them are written out, as one inside of a loop over cells would keep
/// that from being vectorised.
template <typename T, int count, class Places = std::make_index_sequence<count>>
struct Columns;
template <typename T, int count, size_t... j>
struct Columns<T, count, std::index_sequence<j...>> {
  T* at[count];

  VF_INLINE Columns(T* first, int64_t stride) : at{(first + static_cast<int64_t>(j) * stride)...} {}
  VF_INLINE void get(int i, T (&values)[count]) const { ((values[j] = at[j][i]), ...); }
  /// All but the first.
  VF_INLINE void set_others(int i, const T (&values)[count]) const { ((j > 0 ? void(at[j][i] = values[j]) : void()), ...); }
};

/// Components' log-densities, weighted: joint[k, i]; with gradients, the derivatives take the places of the parameters.
template <class Term, typename T, bool with_grad>
inline void components_of(const GroupTile<T>& t, const math::GroupNumbers<T>& numbers, int n) {
  const int64_t cells = t.cells, slot = t.components * cells;
  const math::GroupNumbers<T> given = numbers;  // a copy no store can alias
  for (int k = 0; k < t.components; ++k) {
    const Columns<T, Term::kSlots> params(t.params + k * cells, slot);
    const Columns<T, Term::kData> data(t.data, cells);
    T* __restrict joint = t.joint + k * cells;
    const T* __restrict top = t.top;
    VF_SIMD
    for (int i = 0; i < n; ++i) {
      T x[Term::kData], in[Term::kSlots], d[Term::kSlots], value;
      data.get(i, x);
      params.get(i, in);
      Term::eval(x, in, given, value, d);
      joint[i] = math::cell_joint(in[0], top[i], value);
      if constexpr (with_grad) params.set_others(i, d);
    }
  }
}

/// The derivatives in the tile become gradients: times g p(k | x); those of the logits are g (p(k | x) - w_k).
template <class Term, typename T>
inline void gradients_of(const GroupTile<T>& t, T g, int n) {
  const int64_t slot = int64_t{t.components} * t.cells;
  for (int k = 0; k < t.components; ++k) {
    T* __restrict p = t.params + int64_t{k} * t.cells;
    const T* __restrict joint = t.joint + int64_t{k} * t.cells;
    const T* __restrict weight = t.weight + int64_t{k} * t.cells;
    const T* __restrict total = t.total;
    const T* __restrict joint_total = t.joint_total;
    VF_SIMD
    for (int i = 0; i < n; ++i) {
      const math::CellShare<T> of(g, joint[i], joint_total[i], weight[i], total[i]);
      p[i] = of.of_logit;
      for (int j = 1; j < Term::kSlots; ++j) p[j * slot + i] = math::times(of.share, p[j * slot + i]);
    }
  }
}

template <class Term, typename T>
double group_tile(const GroupArgs& a, const GroupTile<T>& t, const math::GroupNumbers<T>& numbers, int64_t row, int64_t o, int64_t i0,
                  int n) {
  const int64_t stride = a.inner, at = a.params.row(row) + o * t.parameters * stride + i0 * (stride == 1 ? t.parameters : 1);
  const DType dtype = a.params.dtype;
  const bool direct = dtype == dtype_of<T>();
  if (stride == 1) {
    const T* from = static_cast<const T*>(a.params.data) + (direct ? at : 0);
    if (!direct) widen(a.params.data, dtype, at, n * t.parameters, t.staged), from = t.staged;
    transpose(from, n, t.parameters, t.parameters, t.params, t.cells);
  } else {
    for (int j = 0; j < t.parameters; ++j) widen(a.params.data, dtype, at + j * stride, n, t.params + int64_t{j} * t.cells);
  }
  const int64_t x_at = a.x.row(row) + (o * Term::kData * stride + i0 * (stride == 1 ? Term::kData : 1));
  if (stride == 1) {
    widen(a.x.data, a.x.dtype, x_at, n * Term::kData, t.staged);
    transpose(t.staged, n, Term::kData, Term::kData, t.data, t.cells);
  } else {
    for (int j = 0; j < Term::kData; ++j) widen(a.x.data, a.x.dtype, x_at + j * stride, n, t.data + j * t.cells);
  }

  const bool with_grad = a.grad.data != nullptr;
  t.exponentials(t.params, n, t.top, t.weight, t.total);
  if (with_grad) {
    components_of<Term, T, true>(t, numbers, n);
  } else {
    components_of<Term, T, false>(t, numbers, n);
  }
  t.exponentials(t.joint, n, t.joint_top, t.joint, t.joint_total);
  T* __restrict value = t.staged;
  VF_SIMD
  for (int i = 0; i < n; ++i) value[i] = math::cell_value(t.joint_top[i], t.joint_total[i], t.total[i]);
  const double s = sum(value, n);
  if (!with_grad) return s;

  const T* per_row = static_cast<const T*>(a.row_grad.data);
  const T g = static_cast<T>(a.row_grad.constant) * (per_row == nullptr ? T(1) : per_row[row * a.row_grad.stride]);
  gradients_of<Term, T>(t, g, n);
  const int64_t to = a.grad.row(row) + o * t.parameters * stride + i0 * (stride == 1 ? t.parameters : 1);
  if (stride != 1) {
    for (int j = 0; j < t.parameters; ++j) narrow(t.params + int64_t{j} * t.cells, n, a.grad.data, a.grad.dtype, to + j * stride);
  } else if (a.grad.dtype == dtype_of<T>()) {
    transpose(t.params, t.parameters, n, t.cells, static_cast<T*>(a.grad.data) + to, t.parameters);
  } else {
    transpose(t.params, t.parameters, n, t.cells, t.staged, t.parameters);
    narrow(t.staged, n * t.parameters, a.grad.data, a.grad.dtype, to);
  }
  return s;
}

/// A row of the table: how many parameters a component has, how many values a cell, and its loop.
template <typename T>
struct GroupRow {
  int slots, data;
  double (*tile)(const GroupArgs&, const GroupTile<T>&, const math::GroupNumbers<T>&, int64_t row, int64_t o, int64_t i0, int n);
};

template <typename T>
inline const GroupRow<T>& group_row(int32_t term) {
  using namespace math;
  static constexpr GroupRow<T> rows[] = {
#define VF_ROW(name, ...) {__VA_ARGS__::kSlots, __VA_ARGS__::kData, &group_tile<__VA_ARGS__, T>},
      VF_FOR_EACH_GROUP(VF_ROW)
#undef VF_ROW
  };
  return rows[term];
}

template <typename T>
int64_t group_scratch_bytes(const GroupArgs& a) {
  const GroupRow<T>& term = group_row<T>(a.term);
  return static_cast<int64_t>(sizeof(T)) * GroupTile<T>(a, term.slots, term.data, nullptr).count;
}

template <typename T>
double group_cells(const GroupArgs& a, int64_t row, int64_t c0, int64_t c1, void* scratch) {
  const GroupRow<T>& term = group_row<T>(a.term);
  const GroupTile<T> tile(a, term.slots, term.data, static_cast<T*>(scratch));
  const math::GroupNumbers<T> numbers(a.number);
  double total = 0.0;
  for (int64_t c = c0; c < c1;) {
    const int64_t o = a.inner == 1 ? 0 : c / a.inner, i = a.inner == 1 ? c : c % a.inner;
    const int64_t left = a.inner == 1 || c1 - c < a.inner - i ? c1 - c : a.inner - i;
    const int n = static_cast<int>(left < tile.cells ? left : tile.cells);
    total += term.tile(a, tile, numbers, row, o, i, n);
    c += n;
  }
  return total;
}

}  // namespace VF_ISA
}  // namespace vae_fast

#define VF_INSTANTIATE_GROUPS                                                                                         \
  template int64_t vae_fast::VF_ISA::group_scratch_bytes<float>(const vae_fast::GroupArgs&);                          \
  template int64_t vae_fast::VF_ISA::group_scratch_bytes<double>(const vae_fast::GroupArgs&);                         \
  template double vae_fast::VF_ISA::group_cells<float>(const vae_fast::GroupArgs&, int64_t, int64_t, int64_t, void*); \
  template double vae_fast::VF_ISA::group_cells<double>(const vae_fast::GroupArgs&, int64_t, int64_t, int64_t, void*);

// Row sums of a term and its gradients. Included last by the one file of each instruction set that has the terms.
#pragma once

// A loop vectorises with every way through its selections, and jump threading makes copies of what lies behind them: without it a term
// takes up to a third fewer instructions. Mixtures of Gaussians are no faster for it, so it is not an option of the compiler's for all.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-thread-jumps")
#endif

#include "../term_table.h"
#include "bound.h"
#include "logits.h"
#include "row_sums.h"
#include "sparse.h"
#include "tile.h"

namespace vae_fast {
namespace VF_ISA {

/// value[i] = f(in[.][i]) and, with gradients, grad[k][i] = upstream[i] df/din[k] for k >= first. One loop, no branches: the compiler
/// vectorises it. Of input `one`, if there is one, and of upstream the first is that of every element: what follows from it alone leaves
/// the loop.
template <class F, typename T, int first, bool with_grad, int one = -1>
void map_tile(const TermTiles<T>& tiles, const T* __restrict upstream, int n, const math::TermParams<T>& params) {
  constexpr int inputs = F::kInputs;
  const T* __restrict a0 = tiles.in[0];
  const T* __restrict a1 = tiles.in[1];
  const T* __restrict a2 = tiles.in[2];
  const T* __restrict a3 = tiles.in[3];
  T* __restrict g0 = tiles.grad[0];
  T* __restrict g1 = tiles.grad[1];
  T* __restrict g2 = tiles.grad[2];
  T* __restrict g3 = tiles.grad[3];
  T* __restrict value = tiles.value;
  const math::TermParams<T> p = params;  // a copy no store can alias
  const T of_all = one < 0 ? T(0) : *tiles.in[one < 0 ? 0 : one], same = with_grad && one >= 0 ? *upstream : T(0);
  VF_SIMD
  for (int i = 0; i < n; ++i) {
    T x[kMaxTermInputs], d[kMaxTermInputs], v;
    x[0] = a0[i];
    x[1] = a1[i];
    if constexpr (inputs > 2) x[2] = a2[i];
    if constexpr (inputs > 3) x[3] = a3[i];
    if constexpr (one >= 0) x[one] = of_all;
    F::eval(x, p, v, d);
    value[i] = v;
    if constexpr (with_grad) {
      const T g = one >= 0 ? same : upstream[i];
      if constexpr (first == 0) g0[i] = g * d[0];
      g1[i] = g * d[1];
      if constexpr (inputs > 2) g2[i] = g * d[2];
      if constexpr (inputs > 3) g3[i] = g * d[3];
    }
  }
}

#if VF_VECTOR_BYTES == 32
/// Byte j of entry m: where bit j of those set in m is.
struct BitPlaces {
  uint8_t at[256][8] = {};
  constexpr BitPlaces() {
    for (int m = 0; m < 256; ++m) {
      for (int bit = 0, j = 0; bit < 8; ++bit) {
        if ((m >> bit & 1) != 0) at[m][j++] = static_cast<uint8_t>(bit);
      }
    }
  }
};
#endif

/// Where v is not 0 (NaN is not); returns in how many places. Writes up to kSpill beyond.
template <typename T>
inline int find_nonzero(const T* v, int n, int* place) {
  int found = 0, i = 0;
#if VF_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    __m512i here = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (; i + 16 <= n; i += 16) {
      const __mmask16 marked = _mm512_cmp_ps_mask(_mm512_loadu_ps(v + i), _mm512_setzero_ps(), _CMP_NEQ_UQ);
      _mm512_storeu_si512(place + found, _mm512_maskz_compress_epi32(marked, here));
      found += __builtin_popcount(marked);
      here = _mm512_add_epi32(here, _mm512_set1_epi32(16));
    }
  }
#elif VF_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) {
    static constexpr BitPlaces places;
    for (; i + 8 <= n; i += 8) {
      const int marked = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(v + i), _mm256_setzero_ps(), _CMP_NEQ_UQ));
      const __m256i among = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(places.at[marked])));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(place + found), _mm256_add_epi32(among, _mm256_set1_epi32(i)));
      found += __builtin_popcount(static_cast<unsigned>(marked));
    }
  }
#endif
  for (; i < n; ++i) {
    place[found] = i;
    found += v[i] != T(0) ? 1 : 0;
  }
  return found;
}

/// A term of counts where they are 0, and where they are not.
template <class F>
struct AtZero : F {
  template <typename... Args>
  VF_INLINE static void eval(Args&&... args) {
    F::zero(static_cast<Args&&>(args)...);
  }
};
template <class F>
struct AtCount : F {
  template <typename... Args>
  VF_INLINE static void eval(Args&&... args) {
    F::positive(static_cast<Args&&>(args)...);
  }
};

/// map_tile for counts as if all were 0. Of a zero-inflated one in two loops: in one the chain of dependent operations is so long that the
/// processor does not see the next vector before it has ended. The upstream gradient comes last: one that takes a derivative out of range
/// must not meet a share of 0.
template <class F, typename T, bool with_grad>
void map_zeros(const TermTiles<T>& tiles, const T* __restrict upstream, int n, const math::TermParams<T>& params) {
  if constexpr (!math::IsInflated<F>::value) {
    map_tile<AtZero<F>, T, 1, with_grad>(tiles, upstream, n, params);
  } else {
    T ones[with_grad ? kTile : 1];
    VF_SIMD
    for (int i = 0; i < (with_grad ? n : 0); ++i) ones[i] = T(1);
    map_tile<AtZero<typename F::Count>, T, 1, with_grad>(tiles, ones, n, params);
    const T* __restrict logit = tiles.in[3];
    T* __restrict g1 = tiles.grad[1];
    T* __restrict g2 = tiles.grad[2];
    T* __restrict g3 = tiles.grad[3];
    T* __restrict value = tiles.value;
    VF_SIMD
    for (int i = 0; i < n; ++i) {
      T v, d_count, d_logit;
      F::inflate(value[i], logit[i], v, d_count, d_logit);
      value[i] = v;
      if constexpr (with_grad) {
        const T g = upstream[i];
        g1[i] = g * (g1[i] * d_count);
        g2[i] = g * (g2[i] * d_count);
        g3[i] = g * d_logit;
      }
    }
  }
}

/// map_tile for counts: all of them as if they were 0, then those that are not, packed together.
template <class F, typename T, bool with_grad>
void map_counts(const TermTiles<T>& tiles, const T* __restrict upstream, int n, const math::TermParams<T>& params) {
  map_zeros<F, T, with_grad>(tiles, upstream, n, params);

  int places[kTile + kSpill];
  int* const place = tiles.place != nullptr ? tiles.place : places;
  const int found = tiles.place != nullptr ? tiles.found : find_nonzero(tiles.in[0], n, place);
  if (found == 0) return;
  // Filled up to whole vectors with copies of the last: the few that a vector loop leaves over would cost as much as a vector each.
  constexpr int lanes = 64 / static_cast<int>(sizeof(T));
  const int whole = (found + lanes - 1) / lanes * lanes;
  for (int j = found; j < whole; ++j) place[j] = place[found - 1];

  alignas(64) T in[F::kInputs][kTile], grad[F::kInputs][kTile], value[kTile], g[kTile];
  const auto pack = [&](const T* from, T* to) {
    for (int j = 0; j < whole; ++j) to[j] = from[place[j]];
  };
  const auto unpack = [&](const T* from, T* to) {
    for (int j = 0; j < found; ++j) to[place[j]] = from[j];
  };
  TermTiles<T> packed = {};
  packed.value = value;
  for (int k = 0; k < F::kInputs; ++k) {
    if (k > 0 || tiles.place == nullptr) {
      pack(tiles.in[k], in[k]);
    } else {
      for (int j = 0; j < whole; ++j) in[k][j] = tiles.in[k][j < found ? j : found - 1];
    }
    packed.in[k] = in[k];
    packed.grad[k] = grad[k];
  }
  if constexpr (with_grad) pack(upstream, g);
  map_tile<AtCount<F>, T, 1, with_grad>(packed, g, whole, params);
  unpack(value, tiles.value);
  for (int k = 1; with_grad && k < F::kInputs; ++k) unpack(grad[k], tiles.grad[k]);
}

/// map_tile for the elements of one row, which have one scale and one upstream gradient; the sum of their values.
template <class F, typename T, int first, bool with_grad>
double row_of_one_scale(const TermTiles<T>& tiles, int at, T g, int n, const math::TermParams<T>& params) {
  TermTiles<T> row;
  row.value = tiles.value + at;
  for (int k = 0; k < F::kInputs; ++k) {
    row.in[k] = tiles.in[k] + at;
    row.grad[k] = tiles.grad[k] + at;
  }
  map_tile<F, T, first, with_grad, F::kScale>(row, &g, n, params);
  for (int k = first; with_grad && g == T(0) && k < F::kInputs; ++k) {  // even where a derivative is out of range
    for (int i = 0; i < n; ++i) row.grad[k][i] = T(0);
  }
  return sum(row.value, n);
}
template <class F, typename T>
constexpr RowLoops<T> one_scale_loops() {
  if constexpr (math::HasScale<F>::value) {
    return {&row_of_one_scale<F, T, 1, false>, &row_of_one_scale<F, T, 1, true>, &row_of_one_scale<F, T, 0, true>};
  } else {
    return {};
  }
}

/// The loops of one term.
template <typename T>
struct TermMap {
  using Fn = void (*)(const TermTiles<T>&, const T* upstream, int n, const math::TermParams<T>&);
  int inputs;
  math::TermParams<T> (*params)(const double (&given)[kMaxTermParams]);
  bool bounded;  // no derivative is out of range
  Fn value;      // value only
  Fn gradient;   // value and the gradients of inputs 1, 2, 3: the data of a likelihood seldom wants one
  Fn all;        // value and every gradient
  RowLoops<T> rows;
  int scale;  // which input it is, of a term that has loops for one of all elements
  RowLoops<T> of_one_scale;

  template <class F>
  static constexpr TermMap of() {
    if constexpr (math::IsOfCounts<F>::value) {
      constexpr Fn gradient = &map_counts<F, T, true>;
      return {F::kInputs, &math::term_params<F, T>, math::IsBounded<F>::value, &map_counts<F, T, false>, gradient, gradient, {}, 0, {}};
    } else {
      return {F::kInputs,
              &math::term_params<F, T>,
              math::IsBounded<F>::value,
              &map_tile<F, T, 1, false>,
              &map_tile<F, T, 1, true>,
              &map_tile<F, T, 0, true>,
              row_loops<F, T>(),
              math::HasScale<F>::input,
              one_scale_loops<F, T>()};
    }
  }

  /// The loops that take the rows of a call one by one, if there are such: for one scale only where its gradient is a sum over the row.
  const RowLoops<T>* by_row(const TermArgs& a) const {
    if (a.columns < kRowLoopColumns) return nullptr;
    if (rows.value != nullptr) return &rows;
    const Stream& grad = a.grad[scale];
    const bool one = a.in[scale].inner_stride == 0 && (grad.data == nullptr || grad.inner_stride == 0) && a.bound.mode == BoundMode::kNone;
    return of_one_scale.value != nullptr && one ? &of_one_scale : nullptr;
  }
};

template <typename T>
inline const TermMap<T>& term_map(int term) {
  using namespace math;
  static constexpr TermMap<T> maps[] = {
#define VF_ROW(name, kind, ...) TermMap<T>::template of<__VA_ARGS__>(),
      VF_FOR_EACH_TERM(VF_ROW)
#undef VF_ROW
  };
#define VF_ROW(name, kind, ...) \
  static_assert(IsOfCounts<__VA_ARGS__>::value == (kind == TermKind::kCounts), name ": another kind of struct");
  VF_FOR_EACH_TERM(VF_ROW)
#undef VF_ROW
  return maps[term];
}

/// The upstream gradient of row r.
template <typename T>
inline T row_gradient(const RowGrad& g, int64_t r) {
  const T constant = static_cast<T>(g.constant);
  return g.data == nullptr ? constant : constant * static_cast<const T*>(g.data)[r * g.stride];
}

/// Gradients whose upstream is 0 are 0, even where the derivative is out of range (as math::chain has it). After the fact: the test in the
/// loop that differentiates would cost two instructions for every gradient.
template <typename T>
inline void stop_at_zero(const TermTiles<T>& tiles, const T* upstream, const Rect& r, int first, int inputs) {
  int zeros = 0;
  if (r.columns == 1) {
#pragma omp simd reduction(+ : zeros)
    for (int i = 0; i < r.rows; ++i) zeros += upstream[i] == T(0) ? 1 : 0;
  } else {
    for (int i = 0; i < r.rows; ++i) zeros += upstream[i * r.columns] == T(0) ? 1 : 0;
  }
  for (int k = first; zeros > 0 && k < inputs; ++k) {
    T* grad = tiles.grad[k];
    VF_SIMD
    for (int i = 0; i < r.count(); ++i) grad[i] = upstream[i] == T(0) ? T(0) : grad[i];
  }
}

/// Runs `map` over rectangle r.
template <typename T>
inline void run_term(const TermArgs& a, const TermMap<T>& map, const math::TermParams<T>& params, bool with_grad, bool first,
                     const TermTiles<T>& tiles, const Rect& r) {
  if (!with_grad) return map.value(tiles, nullptr, r.count(), params);
  alignas(64) T upstream[kTile + kSpill];
  expand_rows(a.row_grad, r, upstream);
  (first ? map.all : map.gradient)(tiles, upstream, r.count(), params);
  if (!map.bounded) stop_at_zero(tiles, upstream, r, first ? 0 : 1, map.inputs);
}

template <typename T>
void term_rows(const TermArgs& a, int64_t r0, int64_t r1, int64_t c0, int64_t c1, double* acc) {
  alignas(64) T in_buffer[kMaxTermInputs][kTile], grad_buffer[kMaxTermInputs][kTile], value[kTile];
  const TermMap<T>& map = term_map<T>(a.term);
  const math::TermParams<T> params = map.params(a.param);
  bool with_grad = false;
  for (const Stream& s : a.grad) with_grad |= s.data != nullptr;
  int place[kTile];
  Held<T> held;
  const bool first = a.grad[0].data != nullptr;
  const RowLoops<T>* by_row = map.by_row(a);
  const auto row_loop = by_row == nullptr ? nullptr : first ? by_row->all : with_grad ? by_row->gradient : by_row->value;

  for_each_rect(r0, r1, c0, c1, a.columns, [&](const Rect& r) {
    TermTiles<T> tiles;
    tiles.value = value;
    bool direct[kMaxTermInputs] = {};
    for (int k = 0; k < map.inputs; ++k) {
      if (a.in[k].dtype != kSparseRows) {
        tiles.in[k] = load(a.in[k], r, a.columns, in_buffer[k]);
      } else {
        tiles.in[k] = in_buffer[k], tiles.place = place;
        tiles.found = load_sparse(a.in[k], r, in_buffer[k], place);
      }
      T* place = in_place<T>(a.grad[k], r, a.columns);
      // Over its own input: by way of the buffer, as the pointers of map_tile must not alias.
      direct[k] = place != nullptr && (by_row == &map.rows || place != tiles.in[k]);
      tiles.grad[k] = direct[k] ? place : grad_buffer[k];
    }
    tiles.in[a.bound.input] = held.of(a.bound, tiles.in[a.bound.input], r.count());
    if (row_loop != nullptr) {
      for (int i = 0; i < r.rows; ++i) {
        const double s = row_loop(tiles, i * r.columns, row_gradient<T>(a.row_grad, r.row + i), r.columns, params);
        if (acc != nullptr) acc[r.row - r0 + i] += s;
      }
    } else {
      run_term(a, map, params, with_grad, first, tiles, r);
    }
    if (with_grad) held.chain(a.bound, tiles.grad[a.bound.input], r.count());
    for (int k = 0; k < map.inputs; ++k) {
      if (a.grad[k].summed) {
        add(tiles.grad[k], a.grad[k], r);
      } else if (a.grad[k].data != nullptr && !direct[k]) {
        store(tiles.grad[k], a.grad[k], r, a.columns);
      }
    }
    if (acc != nullptr && row_loop == nullptr) {
      for (int i = 0; i < r.rows; ++i) acc[r.row - r0 + i] += sum(value + i * r.columns, r.columns);
    }
  });
}

template <typename T>
void term_elements(const TermArgs& a, void* values, int64_t r0, int64_t r1) {
  alignas(64) T in_buffer[kMaxTermInputs][kTile], grad_buffer[kMaxTermInputs][kTile], value_buffer[kTile];
  const TermMap<T>& map = term_map<T>(a.term);
  const math::TermParams<T> params = map.params(a.param);
  const T coefficient = static_cast<T>(a.coefficient);
  int place[kTile];
  Held<T> held;
  bool with_grad = false;
  for (const Stream& s : a.grad) with_grad |= s.data != nullptr;
  for (int64_t r = r0; r < r1; r += kTile) {
    const Rect rect{r, 0, static_cast<int>(r1 - r < kTile ? r1 - r : kTile), 1};
    TermTiles<T> tiles;
    tiles.value = values != nullptr ? static_cast<T*>(values) + r : value_buffer;
    bool direct[kMaxTermInputs] = {};
    for (int k = 0; k < map.inputs; ++k) {
      if (a.in[k].dtype != kSparseRows) {
        tiles.in[k] = load_elements(a.in[k], r, rect.rows, in_buffer[k]);
      } else {
        tiles.in[k] = in_buffer[k], tiles.place = place;
        tiles.found = load_sparse(a.in[k], rect, in_buffer[k], place);
      }
      T* place = in_place<T>(a.grad[k], rect, 1);
      direct[k] = place != nullptr && place != tiles.in[k];
      tiles.grad[k] = direct[k] ? place : grad_buffer[k];
    }
    tiles.in[a.bound.input] = held.of(a.bound, tiles.in[a.bound.input], rect.rows);
    run_term(a, map, params, with_grad, a.grad[0].data != nullptr, tiles, rect);
    if (with_grad) held.chain(a.bound, tiles.grad[a.bound.input], rect.rows);
    for (int k = 0; k < map.inputs; ++k) {
      if (a.grad[k].data != nullptr && !direct[k]) store(tiles.grad[k], a.grad[k], rect, 1);
    }
    for (int i = 0; coefficient != T(1) && i < rect.rows; ++i) tiles.value[i] *= coefficient;
  }
}

}  // namespace VF_ISA
}  // namespace vae_fast

#define VF_INSTANTIATE_TERMS                                                                                                 \
  template void vae_fast::VF_ISA::term_rows<float>(const vae_fast::TermArgs&, int64_t, int64_t, int64_t, int64_t, double*);  \
  template void vae_fast::VF_ISA::term_rows<double>(const vae_fast::TermArgs&, int64_t, int64_t, int64_t, int64_t, double*); \
  template void vae_fast::VF_ISA::term_elements<float>(const vae_fast::TermArgs&, void*, int64_t, int64_t);                  \
  template void vae_fast::VF_ISA::term_elements<double>(const vae_fast::TermArgs&, void*, int64_t, int64_t);

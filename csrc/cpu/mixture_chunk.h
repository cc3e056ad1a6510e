// Mixtures of Gaussians, a chunk of rows at a time: what exists of N x K is one chunk's, in the cache.
//
// A chunk holds its rows twice: transposed, so that energies are summed with rows in the vector lanes and nothing across lanes, and in
// panels of one vector of dimensions by all rows, so that sums over rows are taken with dimensions in the lanes (and walk through memory in
// order: long rows one below the other would take a page each). Sums within a chunk are float, sums of chunks double.
#pragma once

#include "../math/logsumexp.h"
#include "../math/mixture.h"
#include "simd.h"
#include "table.h"
#include "tile.h"

namespace vae_fast {
namespace VF_ISA {

using cpu::MixtureParameters;
using cpu::MixturePlan;
using cpu::MixtureSums;

constexpr int kRowVectors = 4;                           // vectors of rows that energies are summed for at a time,
constexpr int kComponentBlock = kManyRegisters ? 4 : 2;  // for as many components
constexpr int kSumsBlock = 4;                            // components that sums over rows are taken for at a time
constexpr int kDimBlock = 32;                            // terms of one float sum
constexpr int kDimSpan = 128;                            // of one row block at a time: 16 KB in vectors of 32 bytes

/// A chunk's rows where they are long. With few rows of them, adding a chunk's sums to double ones, which lie outside the second-level
/// cache, takes as long as finding them: of 784 dimensions on an AVX2 processor 32 rows at a time. AVX-512 has half as many steps in a row.
constexpr int64_t kChunkBytes = kManyRegisters ? int64_t{1} << 15 : int64_t{1} << 21;

/// At most so many in any case, whole row blocks. Not a power of two where the first-level cache has eight ways: dimensions of one row
/// block, which lie one chunk apart, would share a few sets of it.
constexpr int kMostRows = kManyRegisters ? 256 : 224;

/// Sums over rows of q (x - mean) and q (x - mean)^2 need no units of sigma while these bounds keep the squares in range, whatever q is in
/// practice: up to 1e14 and down to 1e-20 of it in float.
constexpr double kModerateDistance = 1e12, kModerateScale = 1e9;

template <typename T>
constexpr int kRowBlock = kRowVectors * kWidth<T>;

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/// Diagonal with so few dimensions that most of a vector of them would be padding: sums over rows have rows in the lanes, too.
template <typename T>
bool narrow(const MixtureArgs& a) {
  return !a.full && 2 * a.dims <= kWidth<T>;
}

/// Everything of a chunk that lies in scratch memory.
template <typename T>
struct MixtureScratch {
  T *rows, *transposed, *energies, *top, *coefficient, *grad;
  double* total;                                         // of a row, in double: components may be thousands
  T *difference, *weighted, *difference_t, *y, *grad_t;  // full covariances; grad_t also where rows stay in the lanes
  T* row_weights;                                        // of the sweep's components
  double* row_counts;                                    // of them too: sums over dimensions, from which the weights' share is taken
  T *dim_top, *dim_coefficient;                          // column by column, as `transposed`
  double* dim_total;
  int64_t count = 0;

  MixtureScratch(const MixtureArgs& a, const MixturePlan& p, T* base) {
    const auto take = [&](int64_t n) {
      T* const field = base == nullptr ? nullptr : base + count;
      count += round_up(n, 64 / static_cast<int64_t>(sizeof(T)));
      return field;
    };
    const int64_t r = p.rows, panels = r * p.padded_dims, column_major = r * a.dims, full = a.full ? 1 : 0;
    const int64_t by_dim = a.dim_constant != nullptr ? 1 : 0, by_row = a.row_weights != nullptr ? 1 : 0;
    const int64_t wide = static_cast<int64_t>(sizeof(double) / sizeof(T)), sweep = r * round_up(p.components, kComponentBlock);
    rows = take(panels);
    transposed = take(column_major);
    energies = take(sweep);
    top = take(r);
    total = reinterpret_cast<double*>(take(r * wide));
    coefficient = take(r);
    grad = take(panels);
    difference = take(full * panels);
    weighted = take(full * panels);
    difference_t = take(full * column_major);
    y = take(full * column_major);
    grad_t = take(a.full || by_dim != 0 || narrow<T>(a) ? column_major : 0);
    row_weights = take(by_row * sweep);
    row_counts = reinterpret_cast<double*>(take(by_row * by_dim * sweep * wide));
    dim_top = take(by_dim * column_major);
    dim_coefficient = take(by_dim * column_major);
    dim_total = reinterpret_cast<double*>(take(by_dim * column_major * wide));
  }
};

/// Chunks of up to kMostRows rows, fewer where rows are long or there are few of them; as many components at a time as keep a chunk's
/// energies in the second-level cache. It depends on the shape alone.
template <typename T>
MixturePlan mixture_plan(const MixtureArgs& a) {
  constexpr int64_t block = kRowBlock<T>;
  const auto blocks_of = [](int64_t rows) { return rows <= block ? block : rows > kMostRows ? kMostRows : round_up(rows, block); };
  MixturePlan p;
  const int64_t by_cache = blocks_of(kChunkBytes / static_cast<int64_t>(sizeof(T)) / (a.dims > 0 ? a.dims : 1));
  const int64_t by_count = blocks_of((a.rows + 7) / 8);
  p.rows = static_cast<int>(by_cache < by_count ? by_cache : by_count);
  p.padded_dims = static_cast<int>(round_up(a.dims, kWidth<T>));
  // At multiples of a page's quarter all components would share a few sets of the caches.
  p.stride = p.padded_dims + (!a.full && p.padded_dims * sizeof(T) % 1024 == 0 ? kWidth<T> : 0);
  const int64_t most = round_up(32768 / p.rows, kComponentBlock);
  p.components = static_cast<int>(a.components < most ? a.components : most);
  p.scratch_bytes = static_cast<int64_t>(sizeof(T)) * MixtureScratch<T>(a, p, nullptr).count;
  return p;
}

/// Parameters as the loops want them, and the rows that were last loaded.
template <typename T>
struct MixtureChunk {
  const MixtureArgs& a;
  const MixturePlan& p;
  const MixtureParameters& parameters;
  const T* means;                    // rows p.stride apart
  const T* scale;                    // the same, or factors
  const T *constant, *constant_low;  // (components,)
  const T* x_scale;                  // (dims,), or null
  MixtureScratch<T> s;
  int64_t first = 0;
  int rows = 0;           // loaded
  int padded_rows = 0;    // the same, rounded up to the row block; rows beyond `rows` are 0
  double reach = 0.0;     // no difference of a row and a mean is larger
  bool shifted = false;   // a dimension's terms have a shift
  bool careful = false;   // a product of a difference and a scale may overflow: 0 * inf has to be kept out of the sums
  bool moderate = false;  // differences and scales are such that sums of differences need no units, see kModerateDistance

  MixtureChunk(const MixtureArgs& args, const MixturePlan& plan, const MixtureParameters& given, void* scratch)
      : a(args),
        p(plan),
        parameters(given),
        means(static_cast<const T*>(given.means)),
        scale(static_cast<const T*>(given.scale)),
        constant(static_cast<const T*>(args.constant)),
        constant_low(static_cast<const T*>(args.constant_low)),
        x_scale(static_cast<const T*>(args.x_scale)),
        s(args, plan, static_cast<T*>(scratch)) {
    const int64_t count = static_cast<int64_t>(plan.rows) * plan.padded_dims;
    for (int64_t i = 0; i < count; ++i) s.rows[i] = T(0);  // what pads a panel stays zero
  }

  T low(int64_t k) const { return constant_low == nullptr ? T(0) : constant_low[k]; }
  int dims() const { return static_cast<int>(a.dims); }
  /// Whether the gradient of x is summed column by column, in grad_t, and not in panels.
  bool by_columns() const { return a.full || a.dim_constant != nullptr || narrow<T>(a); }
  /// Of the k-th component of the sweep, one value per row.
  T* energies(int k) const { return s.energies + static_cast<int64_t>(k) * p.rows; }
  T* row_weights(int k) const { return s.row_weights + static_cast<int64_t>(k) * p.rows; }
  double* row_counts(int k) const { return s.row_counts + static_cast<int64_t>(k) * p.rows; }
  /// Where the panel of dimensions [d, d + kWidth) begins; its rows are kWidth apart.
  int64_t panel(int d) const { return static_cast<int64_t>(d) * p.rows; }

  VF_INLINE static Vec<T> bounded(Vec<T> x) {
    const Vec<T> far = every(math::mixture_far<T>()), below = x > far ? far : x;
    return below < -far ? -far : below;
  }

  /// Rows [from, from + n); the panels only if they are wanted.
  void load_rows(int64_t from, int n, bool panels) {
    first = from;
    rows = n;
    padded_rows = static_cast<int>(round_up(n, kRowBlock<T>));
    const T* x = load(a.x, Rect{from, 0, n, dims()}, a.dims, s.grad);
    T top = load_all<false>(x, panels);
    if (top > math::mixture_far<T>()) top = load_all<true>(x, panels);
    reach = static_cast<double>(top) + parameters.farthest_mean;
    careful = !(reach * parameters.largest_scale * (a.full ? dims() : 1) < 0.1 * static_cast<double>(math::largest<T>()));
    moderate = reach <= kModerateDistance && parameters.largest_scale <= kModerateScale && parameters.smallest_scale >= 1 / kModerateScale;
  }

  /// The largest absolute value of all rows, which is none that is read unless they are bounded.
  template <bool bound>
  T load_all(const T* x, bool panels) {
    const int whole = dims() / kWidth<T> * kWidth<T>;
    Vec<T> largest{};
    for (int r = 0; r < padded_rows; r += kWidth<T>) {
      for (int d = 0; d < whole; d += kWidth<T>) load_square<bound>(x, r, d, panels, largest);
    }
    T top = T(0);
    for (int i = 0; i < kWidth<T>; ++i) top = largest[i] > top ? largest[i] : top;
    for (int d = whole; d < dims(); ++d) top = load_column<bound>(x, d, panels, top);
    return top;
  }

  /// A vector of dimensions of as many rows.
  template <bool bound>
  VF_INLINE void load_square(const T* x, int r, int d, bool keep, Vec<T>& largest) {
    constexpr int width = kWidth<T>;
    const int64_t stride = dims();
    Vec<T> v[width];
    for (int i = 0; i < width; ++i) {
      v[i] = r + i < rows ? load_vec(x + (r + i) * stride + d) : Vec<T>{};
      if (bound) v[i] = bounded(v[i]);
      if (x_scale != nullptr) v[i] *= load_vec(x_scale + d);
      if (bound) v[i] = bounded(v[i]);
      const Vec<T> size = v[i] < Vec<T>{} ? -v[i] : v[i];
      largest = size > largest ? size : largest;
    }
    for (int i = 0; keep && i < width; ++i) store_vec(s.rows + panel(d) + (r + i) * width, v[i]);
    transpose<T>(v);
    for (int i = 0; i < width; ++i) store_vec(s.transposed + panel(d + i) + r, v[i]);
  }

  /// One of the dimensions that are left over.
  template <bool bound>
  T load_column(const T* x, int d, bool keep, T top) {
    constexpr int width = kWidth<T>;
    const int64_t stride = dims();
    const T by = x_scale == nullptr ? T(1) : x_scale[d];
    T* to = s.transposed + panel(d);
#pragma omp simd reduction(max : top)
    for (int i = 0; i < rows; ++i) {
      const T v = bound ? math::bounded(math::bounded(x[i * stride + d]) * by) : x[i * stride + d] * by, size = math::abs(v);
      to[i] = v;
      top = size > top ? size : top;
    }
    for (int i = rows; i < padded_rows; ++i) to[i] = T(0);
    T* lane = s.rows + panel(d / width * width) + d % width;
    for (int i = 0; keep && i < rows; ++i) lane[i * width] = to[i];
    return top;
  }

  bool row_is_number(int i) const {
    bool all = true;
    for (int d = 0; d < dims(); ++d) all &= s.transposed[panel(d) + i] == s.transposed[panel(d) + i];
    return all;
  }
};

/// to[i] += from[i]
template <typename T>
VF_INLINE void add_to_double(double* to, Vec<T> from) {
  VF_SIMD
  for (int i = 0; i < kWidth<T>; ++i) to[i] += static_cast<double>(from[i]);
}

}  // namespace VF_ISA
}  // namespace vae_fast

// Tiles of sparse rows: zeros, and the values that are stored among them.
#pragma once

#include "../sparse_rows.h"
#include "tile.h"

namespace vae_fast {
namespace VF_ISA {

/// The first of an ascending run that is not below `least`. (std::lower_bound would be compiled for this instruction set under a name that
/// all of them share.)
template <typename I>
inline const I* first_from(const I* begin, const I* end, int64_t least) {
  while (begin < end) {
    const I* middle = begin + (end - begin) / 2;
    if (*middle < least) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

/// Number i of the row offsets or columns.
VF_INLINE int64_t place(const void* of, bool wide, int64_t i) {
  return wide ? static_cast<const int64_t*>(of)[i] : static_cast<const int32_t*>(of)[i];
}

template <typename T, typename I>
inline void spread_sparse(const SparseRows& x, const Rect& r, T* out) {
  const I *offsets = static_cast<const I*>(x.offsets), *columns = static_cast<const I*>(x.columns);
  for (int64_t row = r.row; row < r.row + r.rows; ++row, out += r.columns) {
    const I *begin = columns + offsets[row], *end = columns + offsets[row + 1];
    begin = first_from(begin, end, r.column);
    end = first_from(begin, end, r.column + r.columns);
    VF_SIMD
    for (int j = 0; j < r.columns; ++j) out[j] = T(0);
    constexpr int kPiece = 128;
    T value[kPiece];
    for (const I* at = begin; at < end; at += kPiece) {
      const int n = static_cast<int>(end - at < kPiece ? end - at : kPiece);
      widen(x.values, x.dtype, at - columns, n, value);
      for (int j = 0; j < n; ++j) out[at[j] - r.column] = value[j];
    }
  }
}

/// The rectangle as compute values, see load.
template <typename T>
inline const T* load_sparse(const Stream& s, const Rect& r, T* buffer) {
  const SparseRows& x = *static_cast<const SparseRows*>(s.data);
  x.wide ? spread_sparse<T, int64_t>(x, r, buffer) : spread_sparse<T, int32_t>(x, r, buffer);
  return buffer;
}

}  // namespace VF_ISA
}  // namespace vae_fast

// Tiles of sparse counts: those that are not 0, and where they lie.
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

/// Of the rectangle, row by row: the counts that are not 0 (NaN is not) and their places in it; returns how many.
template <typename T, typename I>
inline int stored_counts(const SparseRows& x, const Rect& r, T* count, int* place) {
  const I *offsets = static_cast<const I*>(x.offsets), *columns = static_cast<const I*>(x.columns);
  constexpr int kPiece = 128;
  T value[kPiece];
  int found = 0;
  for (int row = 0; row < r.rows; ++row) {
    const I *begin = columns + offsets[r.row + row], *end = columns + offsets[r.row + row + 1];
    begin = first_from(begin, end, r.column);
    end = first_from(begin, end, r.column + r.columns);
    const int64_t from = r.column - int64_t{row} * r.columns;
    for (const I* at = begin; at < end; at += kPiece) {
      const int n = static_cast<int>(end - at < kPiece ? end - at : kPiece);
      widen(x.values, x.dtype, at - columns, n, value);
      for (int j = 0; j < n; ++j) {
        place[found] = static_cast<int>(at[j] - from);
        count[found] = value[j];
        found += value[j] != T(0) ? 1 : 0;
      }
    }
  }
  return found;
}

template <typename T>
inline int load_sparse(const Stream& s, const Rect& r, T* buffer, int* place) {
  const SparseRows& x = *static_cast<const SparseRows*>(s.data);
  return x.wide ? stored_counts<T, int64_t>(x, r, buffer, place) : stored_counts<T, int32_t>(x, r, buffer, place);
}

}  // namespace VF_ISA
}  // namespace vae_fast

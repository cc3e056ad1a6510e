// Counts of which only those that are not 0 are stored: compressed sparse rows, as a data type of a stream of their own.
#pragma once

#include "term_args.h"

namespace vae_fast {

/// Of a stream whose data is a SparseRows; row r of the stream is row r there.
constexpr DType kSparseRows = static_cast<DType>(64);

/// The values of row r, of type `dtype`, are those from offsets[r] to offsets[r + 1], in the columns that `columns` names in ascending
/// order.
struct SparseRows {
  const void* offsets = nullptr;  // int64 if wide, else int32, as `columns`
  const void* columns = nullptr;
  const void* values = nullptr;
  bool wide = true;
  DType dtype = DType::kFloat;
  int64_t entries = 0;  // of `values`: on CUDA, where the places are not looked at before, none beyond is read
};

}  // namespace vae_fast

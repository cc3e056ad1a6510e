// What the host tells the row kernels beside the arguments, and the kernels there are.
#pragma once

#include "groups.cuh"
#include "memory.cuh"
#include "terms.cuh"

namespace vae_fast {
namespace cuda {

/// What the host works out about a term.
template <typename C>
struct TermPlan {
  math::TermParams<C> params;
  int32_t inputs = 0;
};

template <typename C>
struct RowPlan {
  Groups groups;
  TermPlan<C> term[2];
  int32_t units = 0;       // vectors in a row of the first term
  int32_t first_lane = 0;  // where the second term starts: the lanes that the first one left idle in its last round
  bool sums = false;       // value or loss is wanted
  bool parts = false;      // and those of each of two terms
};

/// Vectors of 16 bytes of each input that a thread loads before it uses the first.
template <typename A>
constexpr int vectors_at_once(int inputs) {
  return inputs > 2 ? 1 : 2;
}

/// Starts the kernel compiled for A; row_terms_*.cu instantiate it.
template <typename A>
cudaError_t launch_row_terms(const RowTermsArgs& args, const RowPlan<Compute<A>>& plan, unsigned grid, bool grad, cudaStream_t stream);

}  // namespace cuda
}  // namespace vae_fast

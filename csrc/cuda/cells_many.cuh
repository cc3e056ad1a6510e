// Mixtures over cells of more components than a block has threads: a block per cell, each thread every kThreads-th component.
#pragma once

#include "cells.cuh"
#include "mixture_running_sum.cuh"

namespace vae_fast {
namespace cuda {

template <typename C>
VF_DEVICE RunningSum<C> shift_down(const RunningSum<C>& v, int offset) {
  const unsigned by = static_cast<unsigned>(offset);
  return {__shfl_down_sync(kFullMask, v.shift, by), __shfl_down_sync(kFullMask, v.total, by)};
}

/// Combines the block's, and gives all of it to every thread; what is infinite as a shift is 0 there.
template <typename C>
VF_DEVICE RunningSum<C> combine_block(const RunningSum<C>& v, RunningSum<C> (&shared)[2][kWarps], const Groups& block, int& round) {
  const Place place(block);
  RunningSum<C> all = combine_group(v, block, place, shared, round, [](RunningSum<C> a, const RunningSum<C>& b) {
    a.add(b);
    return a;
  });
  __syncthreads();
  if (threadIdx.x == 0) shared[round][0] = all;
  __syncthreads();
  all = shared[round][0];
  all.shift = math::shift_of(all.shift);
  return all;
}

/// The derivatives are worked out a second time once the sums are known.
template <class Term, typename C>
__global__ void __launch_bounds__(kThreads, 1)
    cells_many_kernel(const __grid_constant__ GroupArgs args, const __grid_constant__ math::GroupNumbers<C> numbers,
                      const __grid_constant__ CellPieces pieces, const __grid_constant__ Groups block) {
  __shared__ RunningSum<C> shared[2][kWarps];
  const int64_t thread = static_cast<int64_t>(threadIdx.x), step = args.components * args.inner;
  int round = 0;
  for (int64_t piece = blockIdx.x; piece < pieces.number; piece += gridDim.x) {
    CellPlace place(args, pieces, Term::kSlots, Term::kData, piece, 0);
    const char *const params = row_start(args.params, place.row), *const data = row_start(args.x, place.row);
    const int64_t left = pieces.line - place.first;
    double sum = 0.0;
    for (int64_t cell = 0; cell < pieces.tiles && cell < left; ++cell) {
      C x[Term::kData];
      load_any<Term::kData>(data, args.x.dtype, place.data, args.inner, 0, Term::kData, x);
      RunningSum<C> weights = RunningSum<C>::zero(), joints = weights;
      for (int64_t k = thread; k < args.components; k += kThreads) {
        C logit[1];
        load_any<1>(params, args.params.dtype, place.params + k * args.inner, 1, 0, 1, logit);
        weights.add(logit[0]);
      }
      weights = combine_block(weights, shared, block, round);
      CellComponent<Term, C> component;
      for (int64_t k = thread; k < args.components; k += kThreads) {
        component.evaluate(numbers, params, args.params.dtype, place.params + k * args.inner, step, x);
        joints.add(math::cell_joint(component.logit, weights.shift, component.density));
      }
      joints = combine_block(joints, shared, block, round);
      sum += static_cast<double>(math::cell_value(joints.shift, joints.total, weights.total));
      for (int64_t k = thread; args.grad.data != nullptr && k < args.components; k += kThreads) {
        const int64_t at = place.params + k * args.inner;
        component.evaluate(numbers, params, args.params.dtype, at, step, x);
        const C l = math::cell_joint(component.logit, weights.shift, component.density);
        const math::CellShare<C> of(upstream_of<C>(args.row_grad, place.row), math::exp(l - joints.shift), joints.total,
                                    math::exp(component.logit - weights.shift), weights.total);
        component.write(of, row_start(args.grad, place.row), args.grad.dtype, at, step);
      }
      place.params += place.params_step;
      place.data += place.data_step;
    }
    if (args.value != nullptr && threadIdx.x == 0) put_value<C>(args, pieces, piece, sum);
  }
}

}  // namespace cuda
}  // namespace vae_fast

// The forward pass of a mixture, and the responsibilities of some rows for the backward pass: a block of threads per tile of rows, the
// components a few at a time.
#pragma once

#include <type_traits>

#include "mixture_joint_near.cuh"
#include "mixture_joint_tf32.cuh"
#include "mixture_plan.h"
#include "mixture_running_sum.cuh"

namespace vae_fast {
namespace cuda {

/// Of the threads that share a row.
template <typename C, int kParts>
struct RowSums {
  RunningSum<C> of_thread[MixtureTile<C>::kRows][kParts + 1];
};

template <typename C, typename Joint>
union ForwardShared {
  typename Joint::Shared joint;
  RowSums<C, Joint::kParts> sums;
};

/// e of a row's N components from `from` on, with the row's own log weights, where it has such.
template <bool kWeighted, typename C, int N>
VF_DEVICE void with_row_weights(const MixtureArgs& m, int64_t row, int from, const C (&e)[N], C (&to)[N]) {
#pragma unroll
  for (int j = 0; j < N; ++j) {
    to[j] = e[j];
    if (kWeighted && row < m.rows && from + j < m.components) to[j] += static_cast<const C*>(m.row_weights)[row * m.components + from + j];
  }
}

/// The tile of rows from `first` on; false where the joint could not.
template <typename C, typename Joint, bool kWeighted>
VF_DEVICE bool forward_tile(const MixtureForwardArgs& args, const int64_t first, ForwardShared<C, Joint>& shared) {
  using Tile = MixtureTile<C>;
  constexpr int kRows = Joint::kRows, kOfThread = Joint::kPerThread;
  const MixtureArgs& m = args.mixture;
  const int thread = static_cast<int>(threadIdx.x);
  C* const q = static_cast<C*>(args.responsibilities);
  RunningSum<C> sum[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) sum[i] = RunningSum<C>::zero();
  const auto add = [&](int k, const Constants<C, kOfThread>& constants, const C(&energies)[kRows][kOfThread]) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      C l[kOfThread], e[kOfThread];
      with_row_weights<kWeighted>(m, first + Joint::row(i), opaque(k) + Joint::part() * kOfThread, energies[i], e);
#pragma unroll
      for (int j = 0; j < kOfThread; ++j) l[j] = constants.exponent(j, e[j], C(0));
      sum[i].add(l, [&](int j, C shift) { return constants.exponent(j, e[j], shift); });
      if (q != nullptr) {
        const int64_t row = first + Joint::row(i);
        const int from = opaque(k) + Joint::part() * kOfThread;
#pragma unroll
        for (int j = 0; j < kOfThread; ++j) {
          if (row < m.rows && from + j < m.components) q[row * m.components + from + j] = e[j];  // a responsibility once the sum is known
        }
      }
    }
  };
  const bool done = Joint::run(m, first, shared.joint, add);
  __syncthreads();
  if (!done) return false;
#pragma unroll
  for (int i = 0; i < kRows; ++i) shared.sums.of_thread[Joint::row(i)][Joint::part()] = sum[i];
  __syncthreads();
  if (thread < Tile::kRows) {
    RunningSum<C>(&parts)[Joint::kParts + 1] = shared.sums.of_thread[thread];
    RunningSum<C> all = parts[0];
    for (int p = 1; p < Joint::kParts; ++p) all.add(parts[p]);
    if (all.total != all.total) all.shift = all.total;
    const int64_t row = first + thread;
    if (row < m.rows) {
      const double log_sum = static_cast<double>(all.shift) + static_cast<double>(math::log(all.total));
      if (args.log_prob != nullptr) static_cast<C*>(args.log_prob)[row] = static_cast<C>(*m.baseline + log_sum);
      if (args.shift != nullptr) static_cast<C*>(args.shift)[row] = all.shift;
      if (args.total != nullptr) static_cast<C*>(args.total)[row] = all.total;
    }
    parts[0] = {math::mixture_shift(all.shift), math::mixture_share(C(1), all.shift, all.total)};
  }
  __syncthreads();
  if (q != nullptr) {
    const int64_t rows = m.rows - first < Tile::kRows ? m.rows - first : Tile::kRows;
    for (int r = thread / kWarp; r < rows; r += kWarps) {
      const RunningSum<C> row = shared.sums.of_thread[r][0];
      C* const to = q + (first + r) * m.components;
      for (int k = thread % kWarp; k < m.components; k += kWarp) {
        to[k] = row.total * math::exp(Constants<C, 1>(m, k).exponent(0, to[k], row.shift));
      }
    }
    __syncthreads();
  }
  return true;
}

template <typename C, typename Joint, bool kWeighted>
__global__ void __launch_bounds__(kThreads, 2) mixture_kernel(const __grid_constant__ MixtureForwardArgs args) {
  using Otherwise = typename Joint::Otherwise;
  __shared__ union Shared {
    ForwardShared<C, Joint> joint;
    ForwardShared<C, Otherwise> otherwise;
  } shared;
  constexpr int kTile = MixtureTile<C>::kRows;
  for (int64_t tile = blockIdx.x; tile * kTile < args.mixture.rows; tile += gridDim.x) {
    const bool done = forward_tile<C, Joint, kWeighted>(args, tile * kTile, shared.joint);
    if constexpr (!std::is_same_v<Joint, Otherwise>) {
      if (!done) forward_tile<C, Otherwise, kWeighted>(args, tile * kTile, shared.otherwise);
    }
  }
}

/// weights[n - first_row][k] = grad_n e^{l_nk - shift_n} / total_n of `rows` rows from first_row on. The tiles are those of the forward
/// pass, so that a row's l are too, to the last bit.
template <typename C, typename Joint, bool kWeighted>
__global__ void __launch_bounds__(kThreads, 2) mixture_weights_kernel(const __grid_constant__ MixtureBackwardArgs args,
                                                                      const int64_t first_row, const int64_t rows, C* const weights) {
  using Otherwise = typename Joint::Otherwise;
  using Tile = MixtureTile<C>;
  __shared__ union Shared {
    typename Joint::Shared joint;
    typename Otherwise::Shared otherwise;
  } shared;
  alignas(16) __shared__ C share[Tile::kRows], from[Tile::kRows];
  const MixtureArgs& m = args.mixture;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * Tile::kRows;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * Tile::kRows; first < rows; first += stride) {
    if (thread < Tile::kRows && first + thread < rows) {
      const int64_t n = first_row + first + thread;
      const C grad = args.grad.data == nullptr ? C(1) : static_cast<const C*>(args.grad.data)[n * args.grad.stride];
      const C shift = static_cast<const C*>(args.shift)[n], total = static_cast<const C*>(args.total)[n];
      share[thread] = math::mixture_share(static_cast<C>(args.grad.constant) * grad, shift, total);
      from[thread] = math::mixture_shift(shift);
    }
    const auto run = [&](auto joint, auto& memory) {
      using J = decltype(joint);
      constexpr int kRows = J::kRows, kOfThread = J::kPerThread;
      const auto write = [&](int k, const Constants<C, kOfThread>& constants, const C(&energies)[kRows][kOfThread]) {
        C of_row[kRows], shift[kRows];
        take(&share[J::row(0)], of_row);
        take(&from[J::row(0)], shift);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const int64_t row = first + J::row(i);
          C e[kOfThread];
          with_row_weights<kWeighted>(m, first_row + row, k + J::part() * kOfThread, energies[i], e);
#pragma unroll
          for (int j = 0; j < kOfThread; ++j) {
            const int at = k + J::part() * kOfThread + j;
            if (row < rows && at < m.components)
              weights[row * m.components + at] = of_row[i] * math::exp(constants.exponent(j, e[j], shift[i]));
          }
        }
      };
      const bool done = J::run(m, first_row + first, memory, write);
      __syncthreads();
      return done;
    };
    const bool done = run(Joint(), shared.joint);
    if constexpr (!std::is_same_v<Joint, Otherwise>) {
      if (!done) run(Otherwise(), shared.otherwise);
    }
  }
}

/// Calls f(Joint(), whether rows have weights of their own) with what evaluates the components: a tile of 64 (32 in double), or of 16 where
/// there are no more.
template <typename C, typename F>
cudaError_t with_joint(const MixtureArgs& m, F&& f) {
  const auto plain = [&](auto weighted) {
    constexpr int kMost = sizeof(C) == 8 ? 2 : 4;
    if (m.full) return f(FullJoint<C>(), weighted);
    return m.components > kSide ? f(DiagonalJoint<C, kMost>(), weighted) : f(DiagonalJoint<C, 1>(), weighted);
  };
  if (m.row_weights != nullptr) return plain(std::true_type());
  if constexpr (sizeof(C) == 4) {
    using No = std::false_type;
    if (m.products && m.centre != nullptr) return m.components > kSide ? f(ProductJoint<4>(), No()) : f(ProductJoint<1>(), No());
  }
  return plain(std::false_type());
}

template <typename C>
cudaError_t launch_mixture(const MixtureForwardArgs& args, cudaStream_t stream) {
  return with_joint<C>(args.mixture, [&](auto joint, auto weighted) {
    const unsigned grid = capped_grid(ceil_div(args.mixture.rows, MixtureTile<C>::kRows));
    VF_START((mixture_kernel<C, decltype(joint), decltype(weighted)::value>), grid, kThreads, stream, args);
    return cudaGetLastError();
  });
}

template <typename C>
cudaError_t launch_mixture_weights(const MixtureBackwardArgs& args, int64_t first_row, int64_t rows, void* to, cudaStream_t stream) {
  const auto start = [&](auto joint, auto weighted) {
    const unsigned grid = capped_grid(ceil_div(rows, MixtureTile<C>::kRows));
    VF_START((mixture_weights_kernel<C, decltype(joint), decltype(weighted)::value>), grid, kThreads, stream, args, first_row, rows,
             static_cast<C*>(to));
    return cudaGetLastError();
  };
  if constexpr (sizeof(C) == 4) {
    if (args.mixture.row_weights == nullptr && NearJoint::takes(args.mixture)) return start(NearJoint(), std::false_type());
  }
  return with_joint<C>(args.mixture, start);
}

}  // namespace cuda
}  // namespace vae_fast

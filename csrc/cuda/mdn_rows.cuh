// Mixtures whose parameters come with each row, few of them: a thread per row. The parameters of a tile of rows lie side by side in memory
// and come to shared memory in copies of 16 bytes, where each thread finds its row's; gradients go the same way back.
#pragma once

#include "../math/mdn.h"
#include "memory.cuh"

namespace vae_fast {
namespace cuda {

constexpr int kMdnRowsMostDims = 4;

/// Rows that lie one after the other, as a block sees them; counted in floats.
struct MdnPart {
  const float* data = nullptr;
  int32_t columns = 0;
  int32_t begin = 0;                 // in shared memory
  int32_t of_tile = 0, of_last = 0;  // of all rows of a tile, and of the last one
};

/// How the rows are cut into tiles, and what the parts of one are: y, logits, means, scale.
struct MdnTiles {
  static constexpr int kParts = 4;
  int32_t rows = 0, number = 0;  // rows of a tile, a multiple of 4, and how many tiles
  int32_t last_rows = 0;
  int32_t joint = 0, floats = 0;  // where there is room for l of every component, if that was asked for, and the whole
  MdnPart part[kParts];

  size_t bytes() const { return static_cast<size_t>(floats) * sizeof(float); }

  MdnTiles(const MdnArgs& args, bool joint_apart) {
    const int64_t means = args.components * args.dims, scales = args.shared_scale ? args.components : means;
    const int64_t columns[kParts] = {args.dims, args.components, means, scales};
    const Stream* const streams[kParts] = {&args.y, &args.logits, &args.means, &args.scale};
    const int64_t of_row = args.dims + args.components + means + scales + (joint_apart ? args.components : 0);
    const int64_t most = kSharedBytes / static_cast<int64_t>(sizeof(float)) / of_row / 4 * 4;
    rows = static_cast<int32_t>(most < kThreads ? most : kThreads);
    if (rows == 0) return;
    number = static_cast<int32_t>(ceil_div(args.rows, rows));
    last_rows = static_cast<int32_t>(args.rows - static_cast<int64_t>(number - 1) * rows);
    for (int i = 0; i < kParts; ++i) {
      const int32_t of_each = static_cast<int32_t>(columns[i]);
      part[i] = {static_cast<const float*>(streams[i]->data), of_each, joint, rows * of_each, last_rows * of_each};
      joint += part[i].of_tile;
    }
    floats = static_cast<int32_t>(rows * of_row);
  }
  VF_DEVICE int rows_of(int tile) const { return tile == number - 1 ? last_rows : rows; }
};

/// Calls move(at) for every fourth of `count` floats up to the last four, a thread for every kThreads-th of them.
template <typename Move>
VF_DEVICE void by_fours(int count, Move&& move) {
#pragma unroll 1
  for (int at = 4 * static_cast<int>(threadIdx.x); at < count - 3; at += 4 * kThreads) move(at);
}
/// ... and one(at) for those that are then left.
template <typename One>
VF_DEVICE void left_over(int count, One&& one) {
  const int at = count / 4 * 4 + static_cast<int>(threadIdx.x);
  if (at < count) one(at);
}

/// Brings a tile's parts to shared memory, for every thread of the block.
VF_DEVICE void bring(const MdnTiles& tiles, int tile, float* memory) {
  const bool last = tile == tiles.number - 1;
#pragma unroll
  for (int i = 0; i < MdnTiles::kParts; ++i) {
    const MdnPart& part = tiles.part[i];
    const float* const from = part.data + static_cast<int64_t>(tile) * part.of_tile;
    by_fours(last ? part.of_last : part.of_tile, [&](int at) { __pipeline_memcpy_async(memory + part.begin + at, from + at, 16); });
  }
  if (last) {
#pragma unroll
    for (int i = 0; i < MdnTiles::kParts; ++i) {
      const MdnPart& part = tiles.part[i];
      const float* const from = part.data + static_cast<int64_t>(tile) * part.of_tile;
      left_over(part.of_last, [&](int at) { memory[part.begin + at] = from[at]; });
    }
  }
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncthreads();
}

/// Puts what is in the parts' places to `data`, where that is given.
VF_DEVICE void put_back(const MdnTiles& tiles, float* const (&data)[MdnTiles::kParts], int tile, const float* memory) {
  const bool last = tile == tiles.number - 1;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < MdnTiles::kParts; ++i) {
    if (data[i] == nullptr) continue;
    const MdnPart& part = tiles.part[i];
    float* const to = data[i] + static_cast<int64_t>(tile) * part.of_tile;
    const float* const from = memory + part.begin;
    by_fours(last ? part.of_last : part.of_tile, [&](int at) {
      Packed<float, 4> four;
      load(from + at, four);
      store(to + at, four);
    });
    if (last) left_over(part.of_last, [&](int at) { to[at] = from[at]; });
  }
}

/// The largest of v from -infinity on, and the sum of e^v relative to it (to 0, if that is -infinity). NaN is in the sum alone.
VF_DEVICE void add_exponentials(const float* v, const float* end, float largest, float& total) {
  const float from = largest == -math::infinity<float>() ? 0.0f : largest;
  total = 0.0f;
#pragma unroll 1
  for (; v < end; ++v) total += math::exp(*v - from);
}

/// A thread's row of a tile in shared memory.
template <int kDims>
struct MdnThread {
  float *y, *logits, *means, *scale;
  int components, of_component, of_dim;  // the last two: how far apart scales are
  float floor, top_logit, weights;       // log sum_k e^{logit_k} is top_logit + log weights
  float top, total;                      // likewise of l_k = logit_k - top_logit + log N, but for (dims / 2) log 2 pi

  VF_DEVICE MdnThread(const MdnTiles& tiles, bool shared_scale, double least, float* memory)
      : components(tiles.part[1].columns),
        of_component(shared_scale ? 1 : kDims),
        of_dim(shared_scale ? 0 : 1),
        floor(static_cast<float>(least)),
        top_logit(-math::infinity<float>()) {
    const int row = static_cast<int>(threadIdx.x);
    y = memory + row * kDims;
    logits = memory + tiles.part[1].begin + row * components;
    means = memory + tiles.part[2].begin + row * (components * kDims);
    scale = memory + tiles.part[3].begin + row * tiles.part[3].columns;
    const float* const end = logits + components;
#pragma unroll 1
    for (const float* v = logits; v < end; ++v) top_logit = *v > top_logit ? *v : top_logit;
    add_exponentials(logits, end, top_logit, weights);
  }
  /// Sets top, total, and joint[k] = l_k, which may take the logits' places. Calls of_element(mean, scale, element) with where every mean
  /// and its scale are, and after_component(scale) after a component's.
  template <typename OfElement, typename AfterComponent>
  VF_DEVICE void evaluate(float* const joint, OfElement&& of_element, AfterComponent&& after_component) {
    float ys[kDims];
#pragma unroll
    for (int d = 0; d < kDims; ++d) ys[d] = y[d];
    top = -math::infinity<float>();
    float *mean = means, *scale_of = scale, *to = joint;
    const float* const end = logits + components;
#pragma unroll 1
    for (const float* logit = logits; logit < end; ++logit, ++to, mean += kDims, scale_of += of_component) {
      float energy = 0.0f;
#pragma unroll
      for (int d = 0; d < kDims; ++d) {
        const math::MdnElement<float> element(ys[d], mean[d], scale_of[d * of_dim], floor);
        energy = d == 0 ? element.energy : energy + element.energy;
        of_element(mean + d, scale_of + d * of_dim, element);
      }
      after_component(scale_of);
      const float l = (*logit - top_logit) - energy;
      *to = l;
      top = l > top ? l : top;
    }
    add_exponentials(joint, joint + components, top, total);
  }
};

template <int kDims>
__global__ void __launch_bounds__(kThreads, 6)
    mdn_rows_kernel(const __grid_constant__ MdnArgs args, const __grid_constant__ MdnTiles tiles) {
  VF_SHARED_BYTES(bytes);
  float* const memory = reinterpret_cast<float*>(bytes);
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles.number; tile += static_cast<int>(gridDim.x)) {
    const int rows = tiles.rows_of(tile), thread = static_cast<int>(threadIdx.x);
    bring(tiles, tile, memory);
    if (thread < rows) {
      MdnThread<kDims> row(tiles, args.shared_scale, args.floor, memory);
      row.evaluate(row.logits, [](float*, float*, const math::MdnElement<float>&) {}, [](float*) {});
      constexpr double kConstant = -0.5 * kDims * 1.8378770664093454836;  // log 2 pi
      const double log_sum = static_cast<double>(row.top) + static_cast<double>(math::log(row.total / row.weights));
      static_cast<float*>(args.log_prob)[static_cast<int64_t>(tile) * tiles.rows + thread] = static_cast<float>(kConstant + log_sum);
    }
    __syncthreads();
  }
}

/// q times a derivative, and 0 where q is, for what is no component's may be infinitely far from it.
template <typename C>
VF_DEVICE C weighed(C q, C derivative) {
  return q == C(0) ? C(0) : q * derivative;
}

/// A row's derivatives take the places of what they are of.
template <int kDims>
__global__ void __launch_bounds__(kThreads, 4)
    mdn_rows_backward_kernel(const __grid_constant__ MdnBackwardArgs args, const __grid_constant__ MdnTiles tiles) {
  VF_SHARED_BYTES(bytes);
  float* const memory = reinterpret_cast<float*>(bytes);
  const bool shared_scale = args.forward.shared_scale;
  const auto data = [](const Stream& s) { return static_cast<float*>(s.data); };
  float* const to[] = {data(args.grad_y), data(args.grad_logits), data(args.grad_means), data(args.grad_scale)};
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles.number; tile += static_cast<int>(gridDim.x)) {
    const int rows = tiles.rows_of(tile), thread = static_cast<int>(threadIdx.x);
    bring(tiles, tile, memory);
    if (thread < rows) {
      MdnThread<kDims> row(tiles, shared_scale, args.forward.floor, memory);
      float* joint = memory + tiles.joint + thread * row.components;
      float in_scale = 0.0f;  // of all dimensions, where they share one
      const auto of_element = [&](float* mean, float* scale, const math::MdnElement<float>& element) {
        *mean = element.d_mean;
        if (shared_scale) {
          in_scale += element.d_scale;
        } else {
          *scale = element.d_scale;
        }
      };
      row.evaluate(joint, of_element, [&](float* scale) {
        if (shared_scale) *scale = in_scale, in_scale = 0.0f;
      });
      const float top = row.total != row.total ? row.total : row.top;
      const int64_t n = static_cast<int64_t>(tile) * tiles.rows + thread;
      const float of_row = args.grad.data == nullptr ? 1.0f : static_cast<const float*>(args.grad.data)[n * args.grad.stride];
      const float grad = static_cast<float>(args.grad.constant) * of_row;
      const float share = math::mixture_share(grad, top, row.total), shift = math::mixture_shift(top);
      const float of_weights = top == -math::infinity<float>() ? 0.0f : grad / row.weights;
      float grad_y[kDims] = {};
      float *mean = row.means, *scale = row.scale;
      const float* const end = row.logits + row.components;
#pragma unroll 1
      for (float* logit = row.logits; logit < end; ++logit, ++joint, mean += kDims, scale += row.of_component) {
        const float q = share * math::exp(*joint - shift);
        *logit = q - weighed(of_weights, math::exp(*logit - row.top_logit));
#pragma unroll
        for (int d = 0; d < kDims; ++d) {
          const float in_mean = weighed(q, mean[d]);
          mean[d] = in_mean;
          grad_y[d] -= in_mean;
          if (d == 0 || !shared_scale) scale[d] = weighed(q, scale[d]);
        }
      }
#pragma unroll
      for (int d = 0; d < kDims; ++d) row.y[d] = grad_y[d];
    }
    put_back(tiles, to, tile, memory);
    __syncthreads();
  }
}

/// Whether the rows of `s`, floats, lie one after the other from a multiple of 16 bytes on.
inline bool rows_together(const Stream& s, int64_t columns) {
  return s.dtype == DType::kFloat && (s.inner_stride == 1 || columns == 1) && s.row.dims == 1 && s.row.stride[0] == columns &&
         reinterpret_cast<uintptr_t>(s.data) % 16 == 0;
}

/// Whether a thread per row takes the call: enough rows to fill the device so, of which half a block's fit into its shared memory.
inline bool by_rows(const MdnArgs& args) {
  const int64_t means = args.components * args.dims;
  return !args.is_double && args.dims <= kMdnRowsMostDims && args.rows >= static_cast<int64_t>(processors()) * kThreads / 4 &&
         MdnTiles(args, true).rows >= kThreads / 2 && rows_together(args.y, args.dims) && rows_together(args.logits, args.components) &&
         rows_together(args.means, means) && rows_together(args.scale, args.shared_scale ? args.components : means);
}
inline bool by_rows(const MdnBackwardArgs& args) {
  const MdnArgs& f = args.forward;
  const int64_t means = f.components * f.dims;
  const auto fits = [](const Stream& s, int64_t columns) { return s.data == nullptr || rows_together(s, columns); };
  return by_rows(f) && fits(args.grad_y, f.dims) && fits(args.grad_logits, f.components) && fits(args.grad_means, means) &&
         fits(args.grad_scale, f.shared_scale ? f.components : means);
}

}  // namespace cuda
}  // namespace vae_fast

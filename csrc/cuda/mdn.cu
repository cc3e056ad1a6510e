#include "mdn.cuh"

#include <type_traits>

namespace vae_fast {
namespace cuda {

namespace {

MdnShape shape_of(const MdnArgs& args) {
  MdnShape s;
  while (s.of_dims < kWarp && s.of_dims * kMdnRun < args.dims) s.of_dims *= 2;
  while (s.lanes() < kWarp && s.of_components < args.components) s.of_components *= 2;
  s.runs = static_cast<int32_t>(ceil_div(args.dims, s.of_dims * kMdnRun));
  return s;
}

unsigned grid_of(const MdnArgs& args, const MdnShape& shape) { return capped_grid(ceil_div(args.rows, kThreads / shape.lanes())); }

bool valid(const MdnArgs& args) {
  constexpr int64_t kMost = int64_t{1} << 30;
  return args.rows >= 0 && args.components >= 1 && args.dims >= 1 && args.components < kMost && args.dims < kMost &&
         args.components * args.dims < kMost;
}

/// Calls start(std::integral_constant<int, dims>(), grid, tiles), of the few dims there are kernels for.
template <typename Start>
cudaError_t start_by_rows(const MdnArgs& args, bool backward, Start&& start) {
  const MdnTiles tiles(args, backward);
  const unsigned grid = capped_grid(tiles.number);
  if (args.dims == 1) start(std::integral_constant<int, 1>(), grid, tiles);
  if (args.dims == 2) start(std::integral_constant<int, 2>(), grid, tiles);
  if (args.dims == 3) start(std::integral_constant<int, 3>(), grid, tiles);
  if (args.dims == 4) start(std::integral_constant<int, 4>(), grid, tiles);
  return cudaGetLastError();
}

template <typename C>
cudaError_t backward(const MdnBackwardArgs& args, cudaStream_t stream) {
  const MdnArgs& f = args.forward;
  const MdnShape shape = shape_of(f);
  const unsigned grid = grid_of(f, shape);
  if (shape.runs == 1 && f.components <= shape.of_components) {
    VF_START((mdn_backward_kernel<C, true>), grid, kThreads, stream, args, shape);
  } else {
    VF_START((mdn_backward_kernel<C, false>), grid, kThreads, stream, args, shape);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t mdn(const MdnArgs& args, cudaStream_t stream) {
  if (!valid(args)) return cudaErrorInvalidValue;
  if (args.rows == 0) return cudaSuccess;
  if (by_rows(args)) {
    return start_by_rows(args, false, [&](auto dims, unsigned grid, const MdnTiles& tiles) {
      VF_START_SHARED((mdn_rows_kernel<decltype(dims)::value>), grid, kThreads, tiles.bytes(), stream, args, tiles);
    });
  }
  const MdnShape shape = shape_of(args);
  const unsigned grid = grid_of(args, shape);
  if (args.is_double) {
    VF_START(mdn_kernel<double>, grid, kThreads, stream, args, shape);
  } else {
    VF_START(mdn_kernel<float>, grid, kThreads, stream, args, shape);
  }
  return cudaGetLastError();
}

cudaError_t mdn_backward(const MdnBackwardArgs& args, cudaStream_t stream) {
  const MdnArgs& f = args.forward;
  if (!valid(f)) return cudaErrorInvalidValue;
  const bool wanted =
      args.grad_y.data != nullptr || args.grad_logits.data != nullptr || args.grad_means.data != nullptr || args.grad_scale.data != nullptr;
  if (f.rows == 0 || !wanted) return cudaSuccess;
  if (by_rows(args)) {
    return start_by_rows(f, true, [&](auto dims, unsigned grid, const MdnTiles& tiles) {
      VF_START_SHARED((mdn_rows_backward_kernel<decltype(dims)::value>), grid, kThreads, tiles.bytes(), stream, args, tiles);
    });
  }
  return f.is_double ? backward<double>(args, stream) : backward<float>(args, stream);
}

}  // namespace cuda
}  // namespace vae_fast

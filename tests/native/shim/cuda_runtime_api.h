// The few names of CUDA's host interface that kernels.h and csrc/cuda use, for the native tests on a machine without CUDA.
#pragma once

struct VfShimStream;
using cudaStream_t = VfShimStream*;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };

namespace vf_shim {
extern int processors;  // small, so that grids are capped and kernels loop
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = vf_shim::processors;
  return cudaSuccess;
}
template <typename T>
cudaError_t cudaGetSymbolAddress(void** address, T& symbol) {
  *address = &symbol;
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

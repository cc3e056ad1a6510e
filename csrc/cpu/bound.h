// A tile of scales held between bounds, where it was loaded, and of their gradients, before they are stored.
#pragma once

#include "../math/bound.h"
#include "tile.h"

namespace vae_fast {
namespace VF_ISA {

template <BoundMode mode, typename T>
void hold_tile(const Bound& bound, const T* __restrict from, int n, T* __restrict value, T* __restrict slope) {
  const math::Bounds<T> b(bound);
  VF_SIMD
  for (int i = 0; i < n; ++i) {
    T v, s;
    math::hold<mode>(from[i], b, v, s);
    value[i] = v;
    slope[i] = s;
  }
}

/// Values and derivatives of a tile; `from` may be neither of the two.
template <typename T>
void hold(const Bound& bound, const T* from, int n, T* value, T* slope) {
  switch (bound.mode) {
    case BoundMode::kClamp:
      return hold_tile<BoundMode::kClamp>(bound, from, n, value, slope);
    case BoundMode::kStraightThrough:
      return hold_tile<BoundMode::kStraightThrough>(bound, from, n, value, slope);
    case BoundMode::kSoftClip:
      return hold_tile<BoundMode::kSoftClip>(bound, from, n, value, slope);
    case BoundMode::kTanh:
      return hold_tile<BoundMode::kTanh>(bound, from, n, value, slope);
    case BoundMode::kNone:
      return;
  }
}

/// The buffers of a tile's bounded input.
template <typename T>
struct Held {
  alignas(64) T value[kTile], slope[kTile];

  /// What a term reads in place of `from`.
  const T* of(const Bound& bound, const T* from, int n) {
    if (bound.mode == BoundMode::kNone) return from;
    hold(bound, from, n, value, slope);
    return value;
  }
  /// The gradient of what was given from that of what was read; a slope of 0 leaves nothing, not of what is out of range either.
  void chain(const Bound& bound, T* __restrict grad, int n) const {
    if (bound.mode == BoundMode::kNone) return;
    VF_SIMD
    for (int i = 0; i < n; ++i) grad[i] = slope[i] == T(0) ? T(0) : slope[i] * grad[i];
  }
};

}  // namespace VF_ISA
}  // namespace vae_fast

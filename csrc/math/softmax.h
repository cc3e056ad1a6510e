// A softmax over classes as every kernel takes it: the logarithm of a class's share, and the share.
#pragma once

#include "elementary.h"

VF_MATH_BEGIN

/// What l_k = logits_k - log sum e^logits takes: (logits - top) - log_total.
template <typename T>
struct Normaliser {
  T top, log_total;
  VF_INLINE T log_share(T logit) const { return (logit - top) - log_total; }
  VF_INLINE T share(T logit) const { return exp_of_sum(log_share(logit)); }
};

/// x l, where nothing of a class leaves nothing of its logarithm.
template <typename T>
VF_INLINE T counted(T x, T l) {
  return x == T(0) ? T(0) : x * l;
}

VF_MATH_END

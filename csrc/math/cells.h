// The mixture of a cell, given its components' logits and log-densities.
#pragma once

#include "logsumexp.h"
#include "scale.h"

VF_MATH_BEGIN

/// log w_k p(x | k) + log sum_k e^(logit_k - top), with the largest logit at hand.
template <typename T>
VF_INLINE T cell_joint(T logit, T top, T density) {
  return (logit - top) + density;
}

/// log sum_k w_k p(x | k), from the sums of e^(joint - joint_top) and of e^(logit - top).
template <typename T>
VF_INLINE T cell_value(T joint_top, T joint_total, T total) {
  return joint_top + (log(joint_total) - log(total));
}

/// What the upstream gradient g makes of a component, with its terms of these sums: g p(k | x), which multiplies its derivatives, and
/// g (p(k | x) - w_k), its logit's.
template <typename T>
struct CellShare {
  T share, of_logit;

  VF_INLINE CellShare(T g, T joint, T joint_total, T weight, T total) {
    const bool none = joint_total == T(0);  // no component explains the cell
    share = none ? T(0) : g * ratio(joint, joint_total);
    of_logit = share - (none ? T(0) : g * ratio(weight, total));
  }
};

VF_MATH_END

// Every term whose element needs a group of parameters, by name. The types tell two kinds apart:
//
// - A mixture of a few components whose parameters lie side by side: the struct is one component's log-density and its derivatives.
// - A softmax over any number of classes: the struct says what is given of the classes (the index of one, a count of each, or those that
// are
//   not zero).
//
// A new one is a struct and a row here; what expands the table, and nothing else, is compiled anew: csrc/cpu/groups_*.cpp,
// csrc/cuda/groups.cu, csrc/ops/groups.cpp.
//
// X(name, Struct): the struct comes last, as it may hold commas.
#pragma once

#include "math/discretized.h"

#define VF_FOR_EACH_GROUP(X)                                               \
  X("discretized_logistic_mixture.grey.exact", DiscretizedPixel<1, false>) \
  X("discretized_logistic_mixture.grey.thin", DiscretizedPixel<1, true>)   \
  X("discretized_logistic_mixture.rgb.exact", DiscretizedPixel<3, false>)  \
  X("discretized_logistic_mixture.rgb.thin", DiscretizedPixel<3, true>)

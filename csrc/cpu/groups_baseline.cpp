// The terms over groups of parameters for the oldest processor of the family: a file of their own, which a new one recompiles.
#include "target_baseline.h"

#include "groups.h"
#include "softmax.h"

VF_INSTANTIATE_GROUPS
VF_INSTANTIATE_SOFTMAX

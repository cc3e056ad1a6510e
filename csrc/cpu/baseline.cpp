// The CPU kernels for the oldest processor of the family, but for the terms of row sums.
#include "target_baseline.h"

#include "isa.h"

VF_DEFINE_TABLE(baseline)

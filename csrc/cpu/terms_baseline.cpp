// The terms of row sums for the oldest processor of the family: a file of their own, which a new term recompiles.
#include "target_baseline.h"

#include "row_terms.h"

VF_INSTANTIATE_TERMS

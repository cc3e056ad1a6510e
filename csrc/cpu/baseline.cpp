// The CPU kernels for the oldest processor of the family: what the compiler targets by default.
#define VF_ISA baseline
#define VF_VECTOR_BYTES 16

#include "isa.h"

VF_DEFINE_TABLE(baseline)

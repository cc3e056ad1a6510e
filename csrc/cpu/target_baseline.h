// Included first by the files of the oldest processor of the family: what the compiler targets by default. That of 64-bit ARM has NEON,
// which fuses a product and a sum.
#if defined(__aarch64__)
#include <arm_neon.h>
#define VF_FMA
#endif

#define VF_ISA baseline
#define VF_VECTOR_BYTES 16

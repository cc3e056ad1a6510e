// Included first by the files of the oldest processor of the family: what the compiler targets by default.
#define VF_ISA baseline
#define VF_VECTOR_BYTES 16

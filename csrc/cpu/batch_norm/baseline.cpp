// Batch normalisation's passes for the instruction set that the compiler assumes.
#include "cpu/batch_norm/includes.h"

#define PAL_FAST_VECTOR_BYTES 16
#define PAL_FAST_INSTRUCTION_SET baseline
#include "cpu/batch_norm/instances.h"

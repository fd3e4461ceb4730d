// The loss's and the heatmap's kernels for the instruction set that the compiler assumes.
#include "cpu/pal_loss/includes.h"

#define PAL_FAST_VECTOR_BYTES 16
#define PAL_FAST_INSTRUCTION_SET baseline
#include "cpu/pal_loss/instances.h"

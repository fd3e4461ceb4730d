// The loss's and the heatmap's kernels for AVX2.
#include "cpu/pal_loss/includes.h"

#if defined(__x86_64__) && defined(__GNUC__)
// After all other headers: their inline functions must not be compiled for this instruction set.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define PAL_FAST_VECTOR_BYTES 32
#define PAL_FAST_INSTRUCTION_SET avx2
#include "cpu/pal_loss/instances.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif

// Batch normalisation's passes for AVX-512.
#include "cpu/batch_norm/includes.h"

#if defined(__x86_64__) && defined(__GNUC__)
// After all other headers: their inline functions must not be compiled for this instruction set.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif
#define PAL_FAST_VECTOR_BYTES 64
#define PAL_FAST_INSTRUCTION_SET avx512
#include "cpu/batch_norm/instances.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif

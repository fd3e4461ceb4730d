// Functions from here on are compiled for AVX-512; target_end.h is to follow them. To be included after all other
// headers: their inline functions, which the linker may take for every caller, must not be.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif
#define PAL_FAST_VECTOR_BYTES 64
#define PAL_FAST_INSTRUCTION_SET avx512

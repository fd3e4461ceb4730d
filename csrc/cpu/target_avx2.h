// Functions from here on are compiled for AVX2; target_end.h is to follow them. To be included after all other
// headers: their inline functions, which the linker may take for every caller, must not be.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define PAL_FAST_VECTOR_BYTES 32
#define PAL_FAST_INSTRUCTION_SET avx2

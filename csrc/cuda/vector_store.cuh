// Vectorised stores to global memory. Inline PTX guarantees one instruction: the compiler may split the assignment of
// a uint4 whose elements it tracks individually into scalar stores.
#pragma once

#include <vector_types.h>

namespace pal_fast::cuda {

#ifndef PAL_FAST_EMULATED

__device__ __forceinline__ void store_words(void* to, const uint2& words) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(words.x), "r"(words.y)
               : "memory");
}

__device__ __forceinline__ void store_words(void* to, const uint4& words) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(words.x),
               "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
}

#endif

}  // namespace pal_fast::cuda

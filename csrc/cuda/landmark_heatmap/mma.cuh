// Warp-level matrix instructions (`mma.sync`) and the splitting of float operands into two float16 each, which keeps
// nearly the accuracy of float.
#pragma once

#include "cuda/memory.cuh"

namespace pal_fast::cuda {

// Fragments that a lane holds of A [16, 16] (m, k), B [16, 8] (k, n) and the accumulator [16, 8] (m, n), as the PTX ISA
// has them for mma.m16n8k16. With g = lane / 4 and t = lane % 4, one register for each pair of neighbouring elements:
//   A: [g, 2t], [g + 8, 2t], [g, 2t + 8], [g + 8, 2t + 8]   pairs along k
//   B: [2t, g], [2t + 8, g]                                 pairs along k
//   accumulator: [g, 2t], [g + 8, 2t]                       pairs along n
// mma.m16n8k8 has the first half of A and of B.
#ifndef PAL_FAST_EMULATED

// accumulator += A B, float16 operands, float32 accumulator.
__device__ __forceinline__ void mma_m16n8k8(float (&accumulator)[4], const unsigned (&a)[2], unsigned b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(accumulator[0]), "+f"(accumulator[1]), "+f"(accumulator[2]), "+f"(accumulator[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

// The same with k = 16; two instructions on sm_75, which has k = 8 only.
__device__ __forceinline__ void mma_m16n8k16(float (&accumulator)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  mma_m16n8k8(accumulator, {a[0], a[1]}, b[0]);
  mma_m16n8k8(accumulator, {a[2], a[3]}, b[1]);
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(accumulator[0]), "+f"(accumulator[1]), "+f"(accumulator[2]), "+f"(accumulator[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

#endif

// Operands of magnitude up to 1 are multiplied by this before they are converted to float16, so that small ones do not
// underflow.
inline constexpr float OPERAND_SCALE = 32768.0f;
// Undoes the scale of a product of two operands.
inline constexpr float ACCUMULATOR_SCALE = 1.0f / (OPERAND_SCALE * OPERAND_SCALE);

// Two neighbouring operands along k, each as the sum high + low of two float16 of 11 bits: the error of an operand is
// at most 2^-22 of it, or 2^-40 if that is more.
struct SplitHalf2 {
  unsigned high, low;
};

[[nodiscard]] __device__ __forceinline__ unsigned pack_half2(__half first, __half second) {
  return bit_cast<unsigned short>(first) | static_cast<unsigned>(bit_cast<unsigned short>(second)) << 16;
}

// Of two operands that are already scaled by OPERAND_SCALE.
[[nodiscard]] __device__ __forceinline__ SplitHalf2 split_half2(float first, float second) {
  const __half high_first = __float2half_rn(first), high_second = __float2half_rn(second);
  return {pack_half2(high_first, high_second), pack_half2(__float2half_rn(first - __half2float(high_first)),
                                                          __float2half_rn(second - __half2float(high_second)))};
}

}  // namespace pal_fast::cuda

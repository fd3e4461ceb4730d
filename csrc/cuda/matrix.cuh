// Products of small matrices on tensor cores, with nearly the accuracy of float.
#pragma once

#include "memory.cuh"

namespace pal_fast::cuda {

// What a lane holds of a 16 x 16 matrix A [m, k], a 16 x 8 matrix B [k, n] and a 16 x 8 product [m, n] (PTX ISA,
// "Matrix fragments for mma.m16n8k16" and "mma.m16n8k8"). With g = lane / 4 and t = lane % 4, pairs of neighbouring
// elements:
//   A: [g, 2t], [g + 8, 2t], [g, 2t + 8], [g + 8, 2t + 8]   pairs along k
//   B: [2t, g], [2t + 8, g]                                 pairs along k
//   product: [g, 2t], [g + 8, 2t]                           pairs along n
// and of A [16, 8] and B [8, 8] the first half.
#ifndef PAL_FAST_EMULATED

// product += A B, float16 in, float32 out.
__device__ __forceinline__ void multiply_add(float (&product)[4], const unsigned (&a)[2], unsigned b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(product[0]), "+f"(product[1]), "+f"(product[2]), "+f"(product[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

__device__ __forceinline__ void multiply_add(float (&product)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  multiply_add(product, {a[0], a[1]}, b[0]);
  multiply_add(product, {a[2], a[3]}, b[1]);
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(product[0]), "+f"(product[1]), "+f"(product[2]), "+f"(product[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

#endif

// Factors of magnitude up to 1 are multiplied by this, so that float16 holds what is small of them.
inline constexpr float HALF_SCALE = 32768.0f;

// Two neighbours along k, each as high + low in float16, 11 bits both: a factor is off by 2^-22 of it, or by 2^-40.
struct PairOfHalves {
  unsigned high, low;
};

[[nodiscard]] __device__ __forceinline__ unsigned pair_of(__half first, __half second) {
  return same_bits<unsigned short>(first) | static_cast<unsigned>(same_bits<unsigned short>(second)) << 16;
}

// Of HALF_SCALE times two factors.
[[nodiscard]] __device__ __forceinline__ PairOfHalves halves_of(float first, float second) {
  const __half high_first = __float2half_rn(first), high_second = __float2half_rn(second);
  return {pair_of(high_first, high_second), pair_of(__float2half_rn(first - __half2float(high_first)),
                                                    __float2half_rn(second - __half2float(high_second)))};
}

// What takes the scale of a product of two factors away.
inline constexpr float PRODUCT_SCALE = 1.0f / (HALF_SCALE * HALF_SCALE);

}  // namespace pal_fast::cuda

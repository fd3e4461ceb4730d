// Products of matrices by a warpgroup, which are on their way while its threads go on: `wgmma` of the PTX ISA, which an
// H100 or H200 has, and which is compiled for sm_90a alone. Tensor cores reach their whole rate in this way only.
#pragma once

#include "memory.cuh"

namespace pal_fast::cuda {

// One instruction: product [64, 64] += A [64, 16] B [16, 64]. Each of the four warps has 16 rows of A and of the
// product. With g = lane / 4 and t = lane % 4, its lanes hold
//   A: as in matrix.cuh
//   product: [g, 8j + 2t], [g, 8j + 2t + 1], [g + 8, 8j + 2t], [g + 8, 8j + 2t + 1] for j = 0 .. 7
// B lies in shared memory as [16 / 8][64][8] of float16, eight k of a column in 16 bytes: the PTX ISA's core matrices,
// along k, without a swizzle.
inline constexpr int WARPGROUP_THREADS = 128;
inline constexpr int PRODUCT_ROWS = 64, PRODUCT_COLUMNS = 64, PRODUCT_DEPTH = 16;

#ifndef PAL_FAST_EMULATED

// What was stored to shared memory by this thread will be seen by products that begin after the next barrier.
__device__ __forceinline__ void show_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Before the first product of a row of them: their registers are as the warpgroup has left them.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Where B begins, as products take it: half of its descriptor, which also says that its core matrices lie
// PRODUCT_COLUMNS times 16 bytes apart along k. Plus n it is n times 16 bytes further on.
using MatrixPlace = unsigned;
[[nodiscard]] __device__ __forceinline__ MatrixPlace place_of(const uint4* first) {
  return (static_cast<unsigned>(__cvta_generic_to_shared(first)) >> 4 & 0x3fffu) | unsigned{PRODUCT_COLUMNS} << 16;
}

// Begins one. `add`: on top of what `product` is, or in its place.
__device__ __forceinline__ void multiply_add(float (&product)[32], const unsigned (&a)[4], MatrixPlace b, bool add) {
  constexpr uint64_t EIGHT_COLUMNS = 8;  // between core matrices along the columns, in 16 bytes
  const uint64_t of_b = EIGHT_COLUMNS << 32 | b;
  asm volatile(
      "{\n"
      ".reg .pred adds;\n"
      "setp.ne.b32 adds, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, adds, 1, 1, 0;\n"
      "}\n"
      : "+f"(product[0]), "+f"(product[1]), "+f"(product[2]), "+f"(product[3]), "+f"(product[4]), "+f"(product[5]),
        "+f"(product[6]), "+f"(product[7]), "+f"(product[8]), "+f"(product[9]), "+f"(product[10]), "+f"(product[11]),
        "+f"(product[12]), "+f"(product[13]), "+f"(product[14]), "+f"(product[15]), "+f"(product[16]),
        "+f"(product[17]), "+f"(product[18]), "+f"(product[19]), "+f"(product[20]), "+f"(product[21]),
        "+f"(product[22]), "+f"(product[23]), "+f"(product[24]), "+f"(product[25]), "+f"(product[26]),
        "+f"(product[27]), "+f"(product[28]), "+f"(product[29]), "+f"(product[30]), "+f"(product[31])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(of_b), "r"(static_cast<int>(add)));
}

// After the last: they may run while the thread goes on, but for the registers of `product` and of A.
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until all are done.
__device__ __forceinline__ void wait_for_products(float (&product)[32]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;"
               : "+f"(product[0]), "+f"(product[1]), "+f"(product[2]), "+f"(product[3]), "+f"(product[4]),
                 "+f"(product[5]), "+f"(product[6]), "+f"(product[7]), "+f"(product[8]), "+f"(product[9]),
                 "+f"(product[10]), "+f"(product[11]), "+f"(product[12]), "+f"(product[13]), "+f"(product[14]),
                 "+f"(product[15]), "+f"(product[16]), "+f"(product[17]), "+f"(product[18]), "+f"(product[19]),
                 "+f"(product[20]), "+f"(product[21]), "+f"(product[22]), "+f"(product[23]), "+f"(product[24]),
                 "+f"(product[25]), "+f"(product[26]), "+f"(product[27]), "+f"(product[28]), "+f"(product[29]),
                 "+f"(product[30]), "+f"(product[31])::"memory");
}

#endif

}  // namespace pal_fast::cuda

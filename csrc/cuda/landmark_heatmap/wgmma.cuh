// Wrappers of the PTX ISA's asynchronous warpgroup-level matrix instructions (`wgmma`), which exist on sm_90a only, and
// which are the only way to the full rate of an H100's or H200's tensor cores.
//
// Order of use, by all threads of a warpgroup:
//   store B to shared memory; fence_proxy_async_shared(); barrier;
//   wgmma_fence(); wgmma_m64n64k16() ...; wgmma_commit_group(); independent work; wgmma_wait_group()
#pragma once

#include "cuda/memory.cuh"

namespace pal_fast::cuda {

// The shape of one instruction: D [64, 64] += A [64, 16] B [16, 64], float16 operands, float32 accumulators. A comes
// from registers, B from shared memory. Each of the four warps holds 16 rows of A and of D; with g = lane / 4 and
// t = lane % 4 a lane holds
//   A: as for mma.m16n8k16 (mma.cuh)
//   D: [g, 8j + 2t], [g, 8j + 2t + 1], [g + 8, 8j + 2t], [g + 8, 8j + 2t + 1] for j = 0 .. 7
// B lies in shared memory as [16 / 8][64][8] float16: K-major core matrices of 8 columns by 8 k without swizzle, each
// column's eight k in 16 bytes.
inline constexpr int WARPGROUP_THREADS = 128;
inline constexpr int WGMMA_M = 64, WGMMA_N = 64, WGMMA_K = 16;

#ifndef PAL_FAST_EMULATED

// Makes this thread's stores to shared memory visible to the async proxy, through which wgmma reads B. A barrier must
// follow before any warpgroup issues the wgmma.
__device__ __forceinline__ void fence_proxy_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Orders earlier register accesses before the wgmma that follow; required before the first one of a batch.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// The low word of B's shared-memory matrix descriptor: start address and leading byte offset (the distance of core
// matrices along k), both in units of 16 bytes. Adding n moves the start by n * 16 bytes.
using MatrixDescriptor = unsigned;
[[nodiscard]] __device__ __forceinline__ MatrixDescriptor matrix_descriptor(const uint4* start) {
  return (static_cast<unsigned>(__cvta_generic_to_shared(start)) >> 4 & 0x3fffu) | unsigned{WGMMA_N} << 16;
}

// accumulator = A B, plus the previous accumulator if `accumulate` (PTX's scale-d). Asynchronous: neither the
// accumulator nor `a` may be touched until wgmma_wait_group().
__device__ __forceinline__ void wgmma_m64n64k16(float (&accumulator)[32], const unsigned (&a)[4], MatrixDescriptor b,
                                                bool accumulate) {
  constexpr uint64_t STRIDE_OFFSET = 8;  // between core matrices along n, in units of 16 bytes
  const uint64_t descriptor = STRIDE_OFFSET << 32 | b;
  asm volatile(
      "{\n"
      ".reg .pred accumulates;\n"
      "setp.ne.b32 accumulates, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, accumulates, 1, 1, 0;\n"
      "}\n"
      : "+f"(accumulator[0]), "+f"(accumulator[1]), "+f"(accumulator[2]), "+f"(accumulator[3]), "+f"(accumulator[4]),
        "+f"(accumulator[5]), "+f"(accumulator[6]), "+f"(accumulator[7]), "+f"(accumulator[8]), "+f"(accumulator[9]),
        "+f"(accumulator[10]), "+f"(accumulator[11]), "+f"(accumulator[12]), "+f"(accumulator[13]),
        "+f"(accumulator[14]), "+f"(accumulator[15]), "+f"(accumulator[16]), "+f"(accumulator[17]),
        "+f"(accumulator[18]), "+f"(accumulator[19]), "+f"(accumulator[20]), "+f"(accumulator[21]),
        "+f"(accumulator[22]), "+f"(accumulator[23]), "+f"(accumulator[24]), "+f"(accumulator[25]),
        "+f"(accumulator[26]), "+f"(accumulator[27]), "+f"(accumulator[28]), "+f"(accumulator[29]),
        "+f"(accumulator[30]), "+f"(accumulator[31])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor), "r"(static_cast<int>(accumulate)));
}

// Closes the batch of wgmma issued so far into a wgmma-group.
__device__ __forceinline__ void wgmma_commit_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until every committed group is complete. The accumulator is an operand so that the compiler reads it after the
// wait only.
__device__ __forceinline__ void wgmma_wait_group(float (&accumulator)[32]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;"
               : "+f"(accumulator[0]), "+f"(accumulator[1]), "+f"(accumulator[2]), "+f"(accumulator[3]),
                 "+f"(accumulator[4]), "+f"(accumulator[5]), "+f"(accumulator[6]), "+f"(accumulator[7]),
                 "+f"(accumulator[8]), "+f"(accumulator[9]), "+f"(accumulator[10]), "+f"(accumulator[11]),
                 "+f"(accumulator[12]), "+f"(accumulator[13]), "+f"(accumulator[14]), "+f"(accumulator[15]),
                 "+f"(accumulator[16]), "+f"(accumulator[17]), "+f"(accumulator[18]), "+f"(accumulator[19]),
                 "+f"(accumulator[20]), "+f"(accumulator[21]), "+f"(accumulator[22]), "+f"(accumulator[23]),
                 "+f"(accumulator[24]), "+f"(accumulator[25]), "+f"(accumulator[26]), "+f"(accumulator[27]),
                 "+f"(accumulator[28]), "+f"(accumulator[29]), "+f"(accumulator[30]), "+f"(accumulator[31])::"memory");
}

#endif

}  // namespace pal_fast::cuda

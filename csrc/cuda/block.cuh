// Warp and block reductions in a fixed order, and the election of the last of several blocks. Blocks are
// one-dimensional and a whole number of warps.
#pragma once

#include "cuda/block_size.h"
#include "cuda/memory.cuh"

namespace pal_fast::cuda {

inline constexpr unsigned FULL_WARP_MASK = 0xffffffffu;
inline constexpr int MAX_BLOCK_WARPS = MAX_BLOCK_THREADS / WARP_SIZE;

struct Sum {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
  template <typename T>
  [[nodiscard]] static __device__ __forceinline__ T identity() {
    return T(0);
  }
};

// Ignores NaN, as fmax does: of NaN and a number, the number.
struct Maximum {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return b > a || a != a ? b : a;
  }
  template <typename T>
  [[nodiscard]] static __device__ __forceinline__ T identity() {
    return static_cast<T>(NAN);
  }
};

// The largest power of two up to |value|, clamped to 2^-125 .. 2^125 so that it and its inverse are normal numbers.
// Dividing by it is exact and keeps squares in range.
[[nodiscard]] __device__ __forceinline__ float unit_of(float value) {
  unsigned exponent = bit_cast<unsigned>(value) & 0x7f800000u;
  exponent = exponent < 0x01000000u ? 0x01000000u : exponent > 0x7e000000u ? 0x7e000000u : exponent;
  return bit_cast<float>(exponent);
}
[[nodiscard]] __device__ __forceinline__ float inverse_of_unit(float unit) {
  return bit_cast<float>(0x7f000000u - bit_cast<unsigned>(unit));
}
// Squares of double need no scaling.
[[nodiscard]] __device__ __forceinline__ double unit_of(double) { return 1.0; }
[[nodiscard]] __device__ __forceinline__ double inverse_of_unit(double) { return 1.0; }

// All-reduce by butterfly shuffles over aligned groups of `lanes` neighbouring lanes, a power of two.
template <typename T, typename Operation>
[[nodiscard]] __device__ __forceinline__ T warp_reduce(T value, int lanes, Operation operation) {
  for (int step = lanes / 2; step > 0; step /= 2) {
    value = operation(value, __shfl_xor_sync(FULL_WARP_MASK, value, step));
  }
  return value;
}

// All-reduce of K values over the block. scratch: K * MAX_BLOCK_WARPS elements of shared memory. All threads must call.
template <int K, typename T, typename Operation>
__device__ __forceinline__ void block_reduce(T (&value)[K], Pointer<T> scratch, Operation operation) {
  const int warps = static_cast<int>(blockDim.x) / WARP_SIZE;
  const int warp = static_cast<int>(threadIdx.x) / WARP_SIZE, lane = static_cast<int>(threadIdx.x) % WARP_SIZE;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    value[k] = warp_reduce(value[k], WARP_SIZE, operation);
  }
  __syncthreads();  // scratch may still be read by an earlier call
  if (lane == 0) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      scratch[k * MAX_BLOCK_WARPS + warp] = value[k];
    }
  }
  if (static_cast<int>(threadIdx.x) < MAX_BLOCK_WARPS - warps) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      scratch[k * MAX_BLOCK_WARPS + warps + threadIdx.x] = Operation::template identity<T>();
    }
  }
  __syncthreads();
  // Every warp repeats the final reduction: a tree has the fewest dependent steps, and double arithmetic is slow on
  // most GPUs.
#pragma unroll
  for (int k = 0; k < K; ++k) {
    value[k] = warp_reduce(scratch[k * MAX_BLOCK_WARPS + lane % MAX_BLOCK_WARPS], MAX_BLOCK_WARPS, operation);
  }
}

// Whether this block is the last of `blocks` to arrive, in which case it sees everything that the others stored (the
// pattern of CUDA's threadFenceReduction sample). `ticket` counts arrivals in global memory and must start at zero.
//
// Contract: every thread of each of these blocks calls this once, after its stores. The barrier orders the stores of
// all threads before thread 0's fence, which is cumulative: they are visible device-wide before the count is. The
// second fence keeps the last block's loads behind the count and invalidates stale L1 lines. Which block comes last
// varies from run to run; what it computes must not. atomicInc wraps the ticket back to zero on the last arrival, ready
// for the next launch. flag: one element of shared memory.
[[nodiscard]] __device__ __forceinline__ bool is_last_block(Pointer<unsigned> ticket, unsigned blocks,
                                                            Pointer<unsigned> flag) {
  __syncthreads();
  if (threadIdx.x == 0) {
    fence_acq_rel_gpu();
    flag[0] = atomicInc(&ticket[0], blocks - 1) == blocks - 1 ? 1u : 0u;
    fence_acq_rel_gpu();
  }
  __syncthreads();
  return flag[0] != 0;
}

}  // namespace pal_fast::cuda

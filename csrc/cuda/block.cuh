// What the threads of a block do together: reductions in a fixed order, and finding the last of several blocks. Blocks
// are one-dimensional and a whole number of warps.
#pragma once

#include "memory.cuh"

namespace pal_fast::cuda {

inline constexpr int WARP_LANES = 32;
inline constexpr unsigned WHOLE_WARP = 0xffffffffu;
inline constexpr int MOST_THREADS = 256;
inline constexpr int MOST_WARPS = MOST_THREADS / WARP_LANES;

struct Sum {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
  // What changes no result.
  template <typename T>
  [[nodiscard]] static __device__ __forceinline__ T neutral() {
    return T(0);
  }
};

// NaN loses against a number.
struct Maximum {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return b > a || a != a ? b : a;
  }
  template <typename T>
  [[nodiscard]] static __device__ __forceinline__ T neutral() {
    return static_cast<T>(NAN);
  }
};

// The power of two below |value|, kept between 2^-125 and 2^125 so that it and its inverse are normal numbers.
[[nodiscard]] __device__ __forceinline__ float unit_of(float value) {
  unsigned exponent = same_bits<unsigned>(value) & 0x7f800000u;
  exponent = exponent < 0x01000000u ? 0x01000000u : exponent > 0x7e000000u ? 0x7e000000u : exponent;
  return same_bits<float>(exponent);
}
[[nodiscard]] __device__ __forceinline__ float inverse_of_unit(float unit) {
  return same_bits<float>(0x7f000000u - same_bits<unsigned>(unit));
}
// Squares of double stay in range without.
[[nodiscard]] __device__ __forceinline__ double unit_of(double) { return 1.0; }
[[nodiscard]] __device__ __forceinline__ double inverse_of_unit(double) { return 1.0; }

// Over groups of `lanes` neighbouring lanes, a power of two; the result is in every lane.
template <typename T, typename Operation>
[[nodiscard]] __device__ __forceinline__ T reduce_lanes(T value, int lanes, Operation operation) {
  for (int step = lanes / 2; step > 0; step /= 2) {
    value = operation(value, __shfl_xor_sync(WHOLE_WARP, value, step));
  }
  return value;
}

// Over the block; the results are in every thread. scratch: K * MOST_WARPS elements of shared memory.
template <int K, typename T, typename Operation>
__device__ __forceinline__ void reduce_block(T (&value)[K], Pointer<T> scratch, Operation operation) {
  const int warps = static_cast<int>(blockDim.x) / WARP_LANES;
  const int warp = static_cast<int>(threadIdx.x) / WARP_LANES, lane = static_cast<int>(threadIdx.x) % WARP_LANES;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    value[k] = reduce_lanes(value[k], WARP_LANES, operation);
  }
  __syncthreads();  // scratch may still be read by an earlier call
  if (lane == 0) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      scratch[k * MOST_WARPS + warp] = value[k];
    }
  }
  if (static_cast<int>(threadIdx.x) < MOST_WARPS - warps) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      scratch[k * MOST_WARPS + warps + threadIdx.x] = Operation::template neutral<T>();
    }
  }
  __syncthreads();
  // In every warp the same: a tree is the shortest way, and doubles are dear on most GPUs.
#pragma unroll
  for (int k = 0; k < K; ++k) {
    value[k] = reduce_lanes(scratch[k * MOST_WARPS + lane % MOST_WARPS], MOST_WARPS, operation);
  }
}

// Whether this block is the last of `blocks` to get here; then it sees all that the others have stored.
//
// Contract: every thread of every one of the blocks calls this once, after its stores. The barrier puts the stores of
// all threads before the fence of the first one, which is cumulative: they are visible to the GPU before the count is.
// The last block's fence keeps its loads behind the count and drops stale lines of L1. Which block is last depends on
// the run; what it computes does not. atomicInc takes the ticket back to zero with the last block, for the next launch.
// flag: one element of shared memory.
[[nodiscard]] __device__ __forceinline__ bool last_block(Pointer<unsigned> ticket, unsigned blocks,
                                                         Pointer<unsigned> flag) {
  __syncthreads();
  if (threadIdx.x == 0) {
    fence();
    flag[0] = atomicInc(&ticket[0], blocks - 1) == blocks - 1 ? 1u : 0u;
    fence();
  }
  __syncthreads();
  return flag[0] != 0;
}

}  // namespace pal_fast::cuda

// The block of threads that batch normalisation's kernels are written for: its shape, what a thread loads and stores
// at once, and sums over the block.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../batch_norm_problem.h"
#include "scalar.cuh"
#include "wide_store.cuh"

namespace pal_fast::cuda {

inline constexpr int BLOCK = 256;
inline constexpr int WARP = 32;
// With channels innermost a block is ROW_LANES wide along the channels.
inline constexpr int ROW_LANES = 32;

// V elements that a thread loads or stores at once.
template <typename S, int V>
struct alignas(sizeof(S) * V) Packed {
  S value[V];
};

template <typename S, int V, typename T>
__device__ __forceinline__ void load(const S* from, T (&to)[V]) {
  const auto packed = *reinterpret_cast<const Packed<S, V>*>(from);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    to[i] = widened(packed.value[i]);
  }
}

template <typename S, int V, typename T>
__device__ __forceinline__ void store(S* to, const T (&from)[V]) {
  if constexpr (V == 1) {
    *to = narrowed<S>(from[0]);
  } else {
    Packed<S, V> packed;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      packed.value[i] = narrowed<S>(from[i]);
    }
    using Words = std::conditional_t<sizeof(packed) == 16, uint4, uint2>;
    static_assert(sizeof(packed) == sizeof(Words));
    Words words;
    memcpy(&words, static_cast<const void*>(&packed), sizeof(packed));
    store_words(to, words);
  }
}

// Sums over the block, in every thread. The order of additions is fixed.
template <int K, typename T>
__device__ __forceinline__ void block_sums(T (&value)[K]) {
  __shared__ T of_warp[K][BLOCK / WARP];
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
  for (int k = 0; k < K; ++k) {
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
      value[k] += __shfl_xor_sync(0xffffffffu, value[k], lanes);
    }
  }
  __syncthreads();  // of_warp may still be read by an earlier call
  if (thread % WARP == 0) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      of_warp[k][thread / WARP] = value[k];
    }
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < K; ++k) {
    T sum = 0;
    for (int warp = 0; warp < BLOCK / WARP; ++warp) {
      sum += of_warp[k][warp];
    }
    value[k] = sum;
  }
}

// Sums over the rows of threads (threadIdx.y), in every thread: value[k][i] belongs to channel i of the thread's V.
template <int K, int V, typename T>
__device__ __forceinline__ void column_sums(T (&value)[K][V]) {
  __shared__ T of_row[BLOCK / ROW_LANES][ROW_LANES * V];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < V; ++i) {
      of_row[threadIdx.y][i * ROW_LANES + threadIdx.x] = value[k][i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < V; ++i) {
      T sum = 0;
      for (int row = 0; row < BLOCK / ROW_LANES; ++row) {
        sum += of_row[row][i * ROW_LANES + threadIdx.x];
      }
      value[k][i] = sum;
    }
  }
}

}  // namespace pal_fast::cuda

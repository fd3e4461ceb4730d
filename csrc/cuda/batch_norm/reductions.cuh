// Reductions of per-channel sums over a block's slice and over the splits of a tile, in a fixed order. All threads of
// the block must call; every thread gets the sums of its own channels.
#pragma once

#include "cuda/batch_norm/slice.cuh"

namespace pal_fast::cuda {

// Over the rows of threads: sums value[k][w] of the threads of a column.
template <int K, int W, typename S, typename N>
__device__ __forceinline__ void reduce_columns(N (&value)[K][W], const BatchNormKernelParams<S>& params, int column,
                                               Pointer<N> scratch) {
  constexpr int PITCH = BatchNormShared<S>::PITCH;
  __syncthreads();  // scratch may still be read
#pragma unroll
  for (int i = 0; i < K * W; ++i) {
    scratch[i * PITCH + threadIdx.x] = value[i / W][i % W];
  }
  __syncthreads();
  // One thread per sum, which it stores in place of the first term.
  for (int sum = threadIdx.x; sum < K * W * params.columns; sum += blockDim.x) {
    const Pointer<N> terms = scratch + (sum / params.columns * PITCH + sum % params.columns);
    N total = 0;
#pragma unroll 4
    for (int row = 0; row < params.rows_per_step; ++row) {
      total += terms[row * params.columns];
    }
    terms[0] = total;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < K * W; ++i) {
    value[i / W][i % W] = scratch[i * PITCH + column];
  }
}

// Over all threads of the block.
template <int K, typename N>
__device__ __forceinline__ void reduce_threads(N (&value)[K][1], Pointer<N> scratch) {
  N flat[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    flat[k] = value[k][0];
  }
  block_reduce<K>(flat, scratch, Sum());
#pragma unroll
  for (int k = 0; k < K; ++k) {
    value[k][0] = flat[k];
  }
}

// Over the elements of the block's slice, by channel. Inactive threads must contribute zeros.
template <int K, typename S, bool Vectorised, Tiling F, typename T>
__device__ __forceinline__ void reduce_channels(T (&value)[K][BlockSlice<S, Vectorised, F>::W],
                                                const BlockSlice<S, Vectorised, F>& slice,
                                                const BatchNormShared<S>& shared) {
  constexpr int V = BlockSlice<S, Vectorised, F>::V, PITCH = BatchNormShared<S>::PITCH;
  if constexpr (F == Tiling::planes) {
    reduce_threads<K>(value, shared.scratch);
  } else if constexpr (F == Tiling::rows) {
    reduce_columns<K>(value, slice.params, slice.column, shared.scratch);
  } else {
    const int lane = static_cast<int>(threadIdx.x) % WARP_SIZE, warp = static_cast<int>(threadIdx.x) / WARP_SIZE;
    const int warps = static_cast<int>(blockDim.x) / WARP_SIZE, length = static_cast<int>(slice.params.length);
    __syncthreads();  // scratch may still be read
#pragma unroll
    for (int i = 0; i < K * V; ++i) {
      shared.scratch[i * PITCH + threadIdx.x] = value[i / V][i % V];
    }
    __syncthreads();
    // One warp per channel, whose elements are neighbours in a row.
    for (int channel = warp; channel < slice.params.tile_channels; channel += warps) {
      T sum[K] = {};
      for (int row = 0; row < slice.params.rows_per_step; ++row) {
        for (int i = channel * length + lane; i < (channel + 1) * length; i += WARP_SIZE) {
#pragma unroll
          for (int k = 0; k < K; ++k) {
            sum[k] += shared.scratch[(k * V + i % V) * PITCH + row * slice.params.columns + i / V];
          }
        }
      }
#pragma unroll
      for (int k = 0; k < K; ++k) {
        sum[k] = warp_reduce(sum[k], WARP_SIZE, Sum());
        if (lane == 0) {
          shared.totals[k * MAX_RUN_CHANNELS + channel] = sum[k];
        }
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < K * V; ++i) {
      value[i / V][i % V] = static_cast<T>(shared.totals[i / V * MAX_RUN_CHANNELS + slice.channel_offset(i % V)]);
    }
  }
}

// Stores the thread's channels of one split's partial result to a row of the workspace.
template <typename S, bool Vectorised, Tiling F, typename T>
__device__ __forceinline__ void store_channels(const BlockSlice<S, Vectorised, F>& slice, int split, int row,
                                               const T (&from)[BlockSlice<S, Vectorised, F>::W]) {
#pragma unroll
  for (int w = 0; w < BlockSlice<S, Vectorised, F>::W; ++w) {
    if (slice.stores_channel(w)) {
      slice.params.partial_row(split, row)[slice.channel(w)] = from[w];
    }
  }
}

// Over the splits of a tile, by its last block: add(split, value) accumulates one split's partial result.
template <int K, typename S, bool Vectorised, Tiling F, typename Add>
__device__ __forceinline__ void reduce_splits(double (&value)[K][BlockSlice<S, Vectorised, F>::W],
                                              const BlockSlice<S, Vectorised, F>& slice,
                                              const BatchNormShared<S>& shared, const Add& add) {
  constexpr bool PLANES = F == Tiling::planes;
  constexpr int UNROLL = F == Tiling::runs ? 1 : 4;  // runs load their channels one by one
  if (PLANES || slice.is_active()) {
    const int first = PLANES ? static_cast<int>(threadIdx.x) : slice.row;
    const int step = PLANES ? static_cast<int>(blockDim.x) : slice.params.rows_per_step;
#pragma unroll UNROLL
    for (int split = first; split < slice.params.splits; split += step) {
      add(split, value);
    }
  }
  if constexpr (PLANES) {
    reduce_threads<K>(value, shared.double_scratch);
  } else {
    reduce_columns<K>(value, slice.params, slice.column, shared.double_scratch);
  }
}

}  // namespace pal_fast::cuda

// Sums over a block's share of each channel, and over the shares of a tile's blocks. The order of additions is fixed.
// All of a block must call; afterwards every thread has the sums of its own channels.
#pragma once

#include "batch_norm_share.cuh"

namespace pal_fast::cuda {

// Over the rows of threads: value[k][w] belongs to the thread's column.
template <int K, int W, typename S, typename N>
__device__ __forceinline__ void sum_columns(N (&value)[K][W], const TypedPass<S>& pass, int column,
                                            Pointer<N> scratch) {
  constexpr int PITCH = BatchNormShared<S>::PITCH;
  __syncthreads();  // scratch may still be read
#pragma unroll
  for (int i = 0; i < K * W; ++i) {
    scratch[i * PITCH + threadIdx.x] = value[i / W][i % W];
  }
  __syncthreads();
  // A thread a sum, which takes the place of its first term.
  for (int sum = threadIdx.x; sum < K * W * pass.columns; sum += blockDim.x) {
    const Pointer<N> terms = scratch + (sum / pass.columns * PITCH + sum % pass.columns);
    N total = 0;
#pragma unroll 4
    for (int row = 0; row < pass.rows_at_once; ++row) {
      total += terms[row * pass.columns];
    }
    terms[0] = total;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < K * W; ++i) {
    value[i / W][i % W] = scratch[i * PITCH + column];
  }
}

template <int K, typename N>
__device__ __forceinline__ void sum_block(N (&value)[K][1], Pointer<N> scratch) {
  N flat[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    flat[k] = value[k][0];
  }
  reduce_block<K>(flat, scratch, Sum());
#pragma unroll
  for (int k = 0; k < K; ++k) {
    value[k][0] = flat[k];
  }
}

// Over the elements of the block's share. What a thread that takes no part brings must be zero.
template <int K, typename S, bool Wide, Form F, typename T>
__device__ __forceinline__ void sum_elements(T (&value)[K][Share<S, Wide, F>::W], const Share<S, Wide, F>& share,
                                             const BatchNormShared<S>& shared) {
  constexpr int V = Share<S, Wide, F>::V, PITCH = BatchNormShared<S>::PITCH;
  if constexpr (F == Form::planes) {
    sum_block<K>(value, shared.scratch);
  } else if constexpr (F == Form::rows) {
    sum_columns<K>(value, share.pass, share.column, shared.scratch);
  } else {
    const int lane = static_cast<int>(threadIdx.x) % WARP_LANES, warp = static_cast<int>(threadIdx.x) / WARP_LANES;
    const int warps = static_cast<int>(blockDim.x) / WARP_LANES, length = static_cast<int>(share.pass.length);
    __syncthreads();  // scratch may still be read
#pragma unroll
    for (int i = 0; i < K * V; ++i) {
      shared.scratch[i * PITCH + threadIdx.x] = value[i / V][i % V];
    }
    __syncthreads();
    // A warp a channel: its elements are neighbours in a row.
    for (int channel = warp; channel < share.pass.group; channel += warps) {
      T sum[K] = {};
      for (int row = 0; row < share.pass.rows_at_once; ++row) {
        for (int i = channel * length + lane; i < (channel + 1) * length; i += WARP_LANES) {
#pragma unroll
          for (int k = 0; k < K; ++k) {
            sum[k] += shared.scratch[(k * V + i % V) * PITCH + row * share.pass.columns + i / V];
          }
        }
      }
#pragma unroll
      for (int k = 0; k < K; ++k) {
        sum[k] = reduce_lanes(sum[k], WARP_LANES, Sum());
        if (lane == 0) {
          shared.totals[k * MOST_RUN_CHANNELS + channel] = sum[k];
        }
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < K * V; ++i) {
      value[i / V][i % V] = static_cast<T>(shared.totals[i / V * MOST_RUN_CHANNELS + share.offset(i % V)]);
    }
  }
}

// What one split leaves in a row of partial, of the thread's channels.
template <typename S, bool Wide, Form F, typename T>
__device__ __forceinline__ void store_channels(const Share<S, Wide, F>& share, int split, int row,
                                               const T (&from)[Share<S, Wide, F>::W]) {
#pragma unroll
  for (int w = 0; w < Share<S, Wide, F>::W; ++w) {
    if (share.writes(w)) {
      share.pass.partial_of(split, row)[share.channel(w)] = from[w];
    }
  }
}

// Sums of add(split, to[K][W]) over the splits, by the last block of a tile.
template <int K, typename S, bool Wide, Form F, typename Add>
__device__ __forceinline__ void sum_splits(double (&value)[K][Share<S, Wide, F>::W], const Share<S, Wide, F>& share,
                                           const BatchNormShared<S>& shared, const Add& add) {
  constexpr bool PLANES = F == Form::planes;
  constexpr int UNROLL = F == Form::runs ? 1 : 4;  // a run's channels are loaded one by one
  if (PLANES || share.takes_part()) {
    const int first = PLANES ? static_cast<int>(threadIdx.x) : share.row;
    const int step = PLANES ? static_cast<int>(blockDim.x) : share.pass.rows_at_once;
#pragma unroll UNROLL
    for (int split = first; split < share.pass.splits; split += step) {
      add(split, value);
    }
  }
  if constexpr (PLANES) {
    sum_block<K>(value, shared.doubles);
  } else {
    sum_columns<K>(value, share.pass, share.column, shared.doubles);
  }
}

}  // namespace pal_fast::cuda

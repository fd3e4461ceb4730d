// The sum of the attribution over channels, as a map of cells, and how partial maps add up to it.
#pragma once

#include "cuda/block.cuh"

namespace pal_fast::cuda {

// The sum of a - pivot over channels at every cell, [cells], rotated: index i holds cell (i - rotation) mod cells,
// because a row of a row sweep may start before its sample.
template <typename T>
struct SummedMap {
  Pointer<const T> sums;
  int cells;
  int rotation;

  [[nodiscard]] __device__ __forceinline__ int cell(int index) const {
    return index < rotation ? index - rotation + cells : index - rotation;
  }
};

// Sums `values` [total], consecutive maps of `cells` elements, over the maps, and hands each cell's sum to one thread,
// which calls store(cell, sum). The last map may be incomplete. The order of additions is fixed. scratch:
// MAX_BLOCK_THREADS elements. All threads must call.
template <typename T, typename Store>
__device__ __forceinline__ void sum_maps(Pointer<const T> values, int64_t total, int cells, Pointer<T> scratch,
                                         const Store& store) {
  const int threads = blockDim.x, thread = threadIdx.x;
  const int splits = cells < threads ? threads / cells : 1;
  // Strided sums: sum[c] += values[i], values[i + stride], ... for i = first_index + c * threads below `stride`. The
  // loads of an iteration, Unroll by Columns, are all in flight together.
  const auto accumulate_strided = [&]<int Columns, int Unroll>(int first_index, int64_t stride, T(&sum)[Columns]) {
    for (int64_t first = 0; first < total; first += Unroll * stride) {
      T value[Unroll][Columns];
#pragma unroll
      for (int u = 0; u < Unroll; ++u) {
#pragma unroll
        for (int c = 0; c < Columns; ++c) {
          const int index = first_index + c * threads;
          const int64_t i = first + u * stride + index;
          value[u][c] = index < stride && i < total ? values[i] : T(0);
        }
      }
#pragma unroll
      for (int u = 0; u < Unroll; ++u) {
#pragma unroll
        for (int c = 0; c < Columns; ++c) {
          sum[c] += value[u][c];
        }
      }
    }
  };
  // One thread sums all maps at `Columns` cells.
  const auto sum_cells = [&]<int Columns, int Unroll>() {
    for (int first = thread; first < cells; first += Columns * threads) {
      T sum[Columns] = {};
      accumulate_strided.template operator()<Columns, Unroll>(first, cells, sum);
#pragma unroll
      for (int c = 0; c < Columns; ++c) {
        if (first + c * threads < cells) {
          store(first + c * threads, sum[c]);
        }
      }
    }
  };
  if (splits == 1) {
    if (cells <= threads) {
      sum_cells.template operator()<1, 16>();
    } else {
      sum_cells.template operator()<4, 4>();
    }
    return;
  }
  // Few cells: `splits` threads share a cell and combine their sums through scratch.
  if (thread < splits * cells) {
    T sum[1] = {};
    accumulate_strided.template operator()<1, 8>(thread, splits * cells, sum);
    scratch[thread] = sum[0];
  }
  __syncthreads();
  if (thread < cells) {
    T sum = 0;
    for (int split = 0; split < splits; ++split) {
      sum += scratch[split * cells + thread];
    }
    store(thread, sum);
  }
}

}  // namespace pal_fast::cuda

// Contiguous (NCHW) layers: one block's partial sums of the attribution over channels. A sample is a matrix of rows of
// 16-byte vectors (RowPlan) in which a column always has the same cells; each thread accumulates a column in registers.
#pragma once

#include "cuda/pal_loss/layer.cuh"
#include "cuda/pal_loss/plan.h"

namespace pal_fast::cuda {

// Kernel argument: a RowPlan.
struct RowSweep {
  int64_t row_elements, rows, rows_per_split;
  int row_vectors, tile_columns, rows_per_step, tiles, splits;
};

[[nodiscard]] inline RowSweep row_sweep(const RowPlan& plan) {
  return {plan.row_elements,
          plan.rows,
          plan.rows_per_split,
          static_cast<int>(plan.row_vectors),
          static_cast<int>(plan.tile_columns),
          static_cast<int>(plan.rows_per_step),
          static_cast<int>(plan.tiles),
          static_cast<int>(plan.splits)};
}

// The vectors of a row sweep that belong to this thread: those starting at elements first, first + stride, ... below
// stop. The first may start before the sample and the last extend beyond it.
struct ThreadRows {
  int64_t first, stride, stop;
  bool active;

  __device__ __forceinline__ ThreadRows(const RowSweep& sweep, int64_t begin, int vector, int split, int tile) {
    const int thread = threadIdx.x;
    const int column = tile * sweep.tile_columns + thread % sweep.tile_columns, row = thread / sweep.tile_columns;
    active = row < sweep.rows_per_step && column < sweep.row_vectors;
    const int64_t origin = begin - begin % vector + static_cast<int64_t>(column) * vector;
    const int64_t first_row = split * sweep.rows_per_split;
    const int64_t last_row = min(first_row + sweep.rows_per_split, sweep.rows);
    first = origin + (first_row + row) * sweep.row_elements;
    stride = sweep.rows_per_step * sweep.row_elements;
    stop = active ? origin + last_row * sweep.row_elements : first;
  }
};

// Vectors of each tensor that a thread has in flight.
inline constexpr int SWEEP_UNROLL = 4;

// Prefetches into L2 the vectors that a thread loads first, to overlap with the drawing of the heatmap.
template <typename S>
__device__ __forceinline__ void prefetch_rows(const Layer<S>& layer, const ThreadRows& rows, int64_t begin,
                                              int64_t end) {
#pragma unroll
  for (int u = 0; u < SWEEP_UNROLL; ++u) {
    const int64_t i = rows.first + u * rows.stride;
    if (i >= begin && i < rows.stop && i < end) {
      layer.prefetch(i);
    }
  }
}

// sum[e] += a - pivot of element e of each of the thread's vectors, within [begin, end), the n channels of the sample
// that take part. All: also accumulates the moments of a - pivot.
template <bool All, typename S, typename T>
__device__ __forceinline__ void sweep_rows(const Layer<S>& layer, const ThreadRows& rows, int64_t begin, int64_t end,
                                           T pivot, T (&sum)[VECTOR_SIZE<S>], MomentSums& moments) {
  constexpr int V = VECTOR_SIZE<S>, U = SWEEP_UNROLL;
  // A vector that is misaligned or partly outside [begin, end).
  const auto accumulate_elements = [&](int64_t first) {
#pragma unroll
    for (int e = 0; e < V; ++e) {
      if (first + e >= begin && first + e < end) {
        const T a = layer.attribution(first + e) - pivot;
        sum[e] += a;
        if constexpr (All) {
          moments.add(static_cast<double>(a));
        }
      }
    }
  };
  // Vectors inside [begin, end) start below body_end.
  int64_t i = rows.first < begin ? rows.first + rows.stride : rows.first;
  const int64_t body_end = layer.aligned ? min(rows.stop, end - V + 1) : i;
  const auto accumulate_vectors = [&]<bool Predicated>() {
    int64_t index[U];
    bool valid[U];
    T a[U][V];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      index[u] = i + u * rows.stride;
      valid[u] = index[u] < body_end;
    }
    load_attribution<Predicated>(layer, index, valid, a, pivot);
#pragma unroll
    for (int e = 0; e < V; ++e) {
#pragma unroll
      for (int u = 0; u < U; ++u) {
        sum[e] += a[u][e];
      }
    }
    if constexpr (All) {
      moments.add<Predicated>(a, valid);
    }
  };
  for (; i + (U - 1) * rows.stride < body_end; i += U * rows.stride) {
    accumulate_vectors.template operator()<false>();
  }
  if (i < body_end) {
    accumulate_vectors.template operator()<true>();
    while (i < body_end) {
      i += rows.stride;
    }
  }
  const int64_t tail = i;
  // The vector across `begin` and the one across `end`; all vectors if the layer is not aligned.
  for (int64_t first = rows.first < begin ? rows.first : tail; first < rows.stop && first < end;) {
    accumulate_elements(first);
    first = first < begin ? tail : first + rows.stride;
  }
}

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

// A sample as a matrix of rows of 16-byte vectors (RowPlan), and a thread's vectors of it: a column, in which every row
// has the same inner indices.
#pragma once

#include "cuda/pal_loss/layer.cuh"
#include "cuda/pal_loss/plan.h"

namespace pal_fast::cuda {

// Kernel argument: a RowPlan.
struct RowSweep {
  int64_t row_elements;
  int64_t stride;  // elements from one of a block's steps to its next
  int row_vectors, tile_columns, rows_per_step, tiles, splits;
  int steps;  // of a block, at most

  [[nodiscard]] __host__ __device__ int blocks_per_sample() const { return splits * tiles; }
};

[[nodiscard]] inline RowSweep row_sweep(const RowPlan& plan) {
  const int64_t stride_rows = plan.splits * plan.rows_per_step;
  return {plan.row_elements,
          stride_rows * plan.row_elements,
          static_cast<int>(plan.row_vectors),
          static_cast<int>(plan.tile_columns),
          static_cast<int>(plan.rows_per_step),
          static_cast<int>(plan.tiles),
          static_cast<int>(plan.splits),
          static_cast<int>(ceil_div(plan.rows, stride_rows))};
}

// The vectors of a sweep over elements [begin, end) that belong to this thread: those starting at elements first, first
// + stride, ... below end. The first may start before `begin` and the last extend beyond `end`.
struct ThreadRows {
  int64_t first, stride;
  bool active;  // whether the thread has a column; if not, first is `end`

  // part: of blocks_per_sample; vector: elements of a vector.
  __device__ __forceinline__ ThreadRows(const RowSweep& sweep, int64_t begin, int64_t end, int vector, int part)
      : stride(sweep.stride) {
    const int thread = threadIdx.x, split = part / sweep.tiles, tile = part % sweep.tiles;
    const int column = tile * sweep.tile_columns + thread % sweep.tile_columns, row = thread / sweep.tile_columns;
    active = row < sweep.rows_per_step && column < sweep.row_vectors;
    const int64_t origin = begin - begin % vector + static_cast<int64_t>(column) * vector;
    first = active ? origin + (static_cast<int64_t>(split) * sweep.rows_per_step + row) * sweep.row_elements : end;
  }
};

}  // namespace pal_fast::cuda

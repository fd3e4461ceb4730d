// Launch configurations of batch normalisation's kernels. They depend on the tensors' shape, type, layout and alignment
// and the number of multiprocessors only, so that the same tensors give the same bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "batch_norm_problem.h"
#include "cuda/block_size.h"
#include "cuda/splits.h"
#include "cuda/storage.h"

namespace pal_fast::cuda {

// What a tile consists of. In each case a thread stays in a column, so that its channels are fixed.
enum class Tiling {
  planes,  // one channel: B planes of L elements, by vectors if a plane is whole vectors, else by elements
  runs,    // consecutive channels of small planes that are whole vectors together, if not each (7 x 7)
  rows,    // channels innermost: a range of columns of the matrix [B * L, C]
};

struct BatchNormPlan {
  Tiling tiling = Tiling::planes;
  bool vectorised = true;     // by vectors, or by single elements
  int64_t tile_channels = 1;  // channels of a tile
  int64_t tiles = 1;          // over all channels
  int64_t columns = 1;        // threads along a row: (part of) a plane, a run, (part of) a matrix row
  int64_t rows_per_step = 1;  // rows of threads
  int64_t threads = 0;
  // The blocks of a tile split its samples (or matrix rows) and, within a sample, the vectors of large planes.
  int64_t outer_splits = 1, inner_splits = 1;
  int64_t outer_per_split = 1, inner_per_split = 1;

  [[nodiscard]] constexpr int64_t splits() const { return outer_splits * inner_splits; }
};

// Minimum resident blocks per multiprocessor, as given to __launch_bounds__.
[[nodiscard]] constexpr int resident_batch_norm_blocks(bool second_derivative, int64_t size) {
  return second_derivative || size == 8 ? 2 : 3;
}

// Elements of a vector: 16 bytes, or 8 for 16-bit types, because a thread keeps the coefficients of each element's
// channel in registers.
[[nodiscard]] constexpr int64_t batch_norm_vector_size(int64_t size) { return size == 8 ? 2 : 4; }

// Channels of a tile of runs.
inline constexpr int64_t MAX_RUN_CHANNELS = 128;
// Bounds the final reduction over splits, which the last block of a tile does alone.
inline constexpr int64_t MAX_BATCH_NORM_SPLITS = 256;
// Prologue and epilogue of a block, in steps of a thread.
inline constexpr int64_t BATCH_NORM_OVERHEAD = 8;

// `aligned`: all tensors [B, C, L] that are read are aligned to 16 bytes.
[[nodiscard]] inline BatchNormPlan plan_batch_norm(const BatchNormProblem& problem, Storage storage, bool aligned,
                                                   int64_t multiprocessors) {
  const int64_t size = element_size(storage), vector = batch_norm_vector_size(size);
  const int64_t channels = problem.channels, length = problem.length;
  BatchNormPlan plan;
  int64_t outer = problem.batch, inner = 1;  // rows, and vectors of a row that several blocks may split
  if (problem.channels_innermost()) {
    plan.tiling = Tiling::rows;
    plan.vectorised = aligned && channels % vector == 0;
    const int64_t v = plan.vectorised ? vector : 1, vectors = ceil_div(channels, v);
    // Tiles are 128 bytes wide, a cache line, if there are enough channels.
    const int64_t tiles = ceil_div(vectors, std::min<int64_t>(WARP_SIZE, 128 / (v * size)));
    plan.columns = ceil_div(vectors, tiles);
    plan.tile_channels = plan.columns * v;
    outer = problem.count();
  } else {
    // Channels whose planes together are whole vectors, and the multiple of them that occupies at least a warp.
    const int64_t min_channels = vector / std::gcd(length, vector);
    const int64_t run_channels = std::min(min_channels * ceil_div(WARP_SIZE * vector, min_channels * length), channels);
    const bool runs = aligned && (length % vector != 0 || length < 8 * vector) && channels % min_channels == 0 &&
                      run_channels * length <= MAX_BLOCK_THREADS * vector && run_channels <= MAX_RUN_CHANNELS;
    if (runs) {
      plan.tiling = Tiling::runs;
      plan.tile_channels = run_channels;
      plan.columns = ceil_div(run_channels * length, vector);
    } else {
      plan.vectorised = aligned && length % vector == 0;
      inner = plan.vectorised ? length / vector : length;
      plan.columns = ceil_div(inner, ceil_div(inner, MAX_BLOCK_THREADS));
    }
  }
  plan.tiles = ceil_div(channels, plan.tile_channels);
  outer = std::max<int64_t>(outer, 1);                        // an empty batch is one empty split
  const int64_t inner_steps = ceil_div(inner, plan.columns);  // steps along a row
  plan.rows_per_step =
      inner > plan.columns ? 1 : std::max<int64_t>(1, std::min(MAX_BLOCK_THREADS / plan.columns, outer));
  plan.threads = round_up(plan.columns * plan.rows_per_step, WARP_SIZE);

  const int64_t outer_steps = ceil_div(outer, plan.rows_per_step);
  const int64_t splits = choose_splits(
      plan.tiles, outer_steps * inner_steps, plan.threads, CostModel{BATCH_NORM_OVERHEAD},
      {multiprocessors, resident_batch_norm_blocks(false, size) * MAX_BLOCK_THREADS}, MAX_BATCH_NORM_SPLITS);
  plan.outer_per_split = ceil_div(outer_steps, std::min(splits, outer_steps)) * plan.rows_per_step;
  plan.outer_splits = ceil_div(outer, plan.outer_per_split);
  plan.inner_per_split =
      ceil_div(inner_steps, std::clamp<int64_t>(splits / plan.outer_splits, 1, inner_steps)) * plan.columns;
  plan.inner_splits = ceil_div(inner, plan.inner_per_split);
  return plan;
}

// Rows [C] of the workspace `partial` for the partial result of a split, and for the total that the next kernel reads.
inline constexpr int64_t BATCH_NORM_PARTIAL_ROWS = 3;

// All rows of `partial`: of each split, and of the total.
[[nodiscard]] inline int64_t batch_norm_partial_rows(const BatchNormPlan& plan) {
  return plan.splits() > 1 ? (plan.splits() + 1) * BATCH_NORM_PARTIAL_ROWS : 0;
}

}  // namespace pal_fast::cuda

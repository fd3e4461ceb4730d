// How batch normalisation is cut into blocks: a matter of the tensor's shape, type and layout and of the number of
// multiprocessors only, so that the same input gives the same bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "../batch_norm_problem.h"
#include "splits.h"
#include "storage.h"

namespace pal_fast::cuda {

// How the elements of a block's channels lie. In every form a thread keeps to its column, so that it knows its
// channels.
enum class Tiling {
  planes,  // one channel, whose planes of L elements are whole vectors, or are taken one element at a time
  runs,    // neighbouring channels, whose planes together are whole vectors where each of them is not (7 x 7)
  rows,    // channels innermost: some columns of a [B * L, C] matrix
};

struct BatchNormPlan {
  Tiling tiling = Tiling::planes;
  bool vectorised = true;     // vectors, or single elements
  int64_t tile_channels = 1;  // channels of a block
  int64_t tiles = 1;          // blocks side by side: all channels
  int64_t columns = 1;        // threads along a row: a plane or a part of it, a run, a row
  int64_t rows_per_step = 1;  // rows of threads
  int64_t threads = 0;
  // Blocks share a tile's samples (or rows), and within a sample the vectors of large planes.
  int64_t outer_splits = 1, inner_splits = 1;
  int64_t outer_per_split = 1, inner_per_split = 1;

  [[nodiscard]] constexpr int64_t splits() const { return outer_splits * inner_splits; }
};

inline constexpr int64_t BATCH_NORM_THREADS = 256;
// A multiprocessor's registers hold at least so many blocks.
[[nodiscard]] constexpr int resident_batch_norm_blocks(bool second_derivative, int64_t size) {
  return second_derivative || size == 8 ? 2 : 3;
}

// Elements that a thread loads and stores at once: 16 bytes, of 16-bit types 8, because a thread has every coefficient
// of its channels in registers.
[[nodiscard]] constexpr int64_t batch_norm_vector_size(int64_t size) { return size == 8 ? 2 : 4; }

// Channels of a run's block.
inline constexpr int64_t MAX_RUN_CHANNELS = 128;
// The last block of a tile adds up what all of its blocks leave.
inline constexpr int64_t MAX_BATCH_NORM_SPLITS = 256;
// Steps of a thread that are worth a block's beginning and end.
inline constexpr int64_t BATCH_NORM_OVERHEAD = 8;

// `aligned`: all tensors [B, C, L] that are read start at a multiple of 16 bytes.
[[nodiscard]] inline BatchNormPlan plan_batch_norm(const BatchNormProblem& problem, Storage storage, bool aligned,
                                                   int64_t multiprocessors) {
  const int64_t size = element_size(storage), vector = batch_norm_vector_size(size);
  const int64_t channels = problem.channels, length = problem.length;
  BatchNormPlan plan;
  int64_t outer = problem.batch, inner = 1;  // rows, and vectors of a row that no block must take at once
  if (problem.channels_innermost()) {
    plan.tiling = Tiling::rows;
    plan.vectorised = aligned && channels % vector == 0;
    const int64_t v = plan.vectorised ? vector : 1, vectors = ceil_div(channels, v);
    // Rows of a block are 128 bytes wide, a line of the cache, where there are so many channels.
    const int64_t tiles = ceil_div(vectors, std::min<int64_t>(WARP_THREADS, 128 / (v * size)));
    plan.columns = ceil_div(vectors, tiles);
    plan.tile_channels = plan.columns * v;
    outer = problem.count();
  } else {
    const int64_t least = vector / std::gcd(length, vector);  // channels whose planes are whole vectors together
    // As many as make a row of a warp.
    const int64_t group = std::min(least * ceil_div(WARP_THREADS * vector, least * length), channels);
    const bool runs = aligned && (length % vector != 0 || length < 8 * vector) && channels % least == 0 &&
                      group * length <= BATCH_NORM_THREADS * vector && group <= MAX_RUN_CHANNELS;
    if (runs) {
      plan.tiling = Tiling::runs;
      plan.tile_channels = group;
      plan.columns = ceil_div(group * length, vector);
    } else {
      plan.vectorised = aligned && length % vector == 0;
      inner = plan.vectorised ? length / vector : length;
      plan.columns = ceil_div(inner, ceil_div(inner, BATCH_NORM_THREADS));
    }
  }
  plan.tiles = ceil_div(channels, plan.tile_channels);
  outer = std::max<int64_t>(outer, 1);                   // an empty batch is one empty part
  const int64_t across = ceil_div(inner, plan.columns);  // steps from a row's beginning to its end
  plan.rows_per_step =
      inner > plan.columns ? 1 : std::max<int64_t>(1, std::min(BATCH_NORM_THREADS / plan.columns, outer));
  plan.threads = round_up(plan.columns * plan.rows_per_step, WARP_THREADS);

  const int64_t down = ceil_div(outer, plan.rows_per_step);
  const int64_t splits = choose_splits(plan.tiles, down * across, plan.threads, CostModel{BATCH_NORM_OVERHEAD},
                                       {multiprocessors, resident_batch_norm_blocks(false, size) * BATCH_NORM_THREADS},
                                       MAX_BATCH_NORM_SPLITS);
  plan.outer_per_split = ceil_div(down, std::min(splits, down)) * plan.rows_per_step;
  plan.outer_splits = ceil_div(outer, plan.outer_per_split);
  plan.inner_per_split = ceil_div(across, std::clamp<int64_t>(splits / plan.outer_splits, 1, across)) * plan.columns;
  plan.inner_splits = ceil_div(inner, plan.inner_per_split);
  return plan;
}

// What a block of a split tile leaves for the last one, and that for the next kernel: rows of partial, [C] each.
inline constexpr int64_t BATCH_NORM_PARTIAL_ROWS = 3;

// Rows of C numbers: BATCH_NORM_PARTIAL_ROWS for each split, and as many for the sums of all.
[[nodiscard]] inline int64_t batch_norm_partial_rows(const BatchNormPlan& plan) {
  return plan.splits() > 1 ? (plan.splits() + 1) * BATCH_NORM_PARTIAL_ROWS : 0;
}

}  // namespace pal_fast::cuda

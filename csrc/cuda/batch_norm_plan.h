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
enum class Form {
  planes,  // one channel, whose planes of L elements are whole vectors, or are taken one element at a time
  runs,    // neighbouring channels, whose planes together are whole vectors where each of them is not (7 x 7)
  rows,    // channels innermost: some columns of a [B * L, C] matrix
};

struct BatchNormPlan {
  Form form = Form::planes;
  bool wide = true;          // vectors, or single elements
  int64_t group = 1;         // channels of a block
  int64_t tiles = 1;         // blocks side by side: all channels
  int64_t columns = 1;       // threads along a row: a plane or a part of it, a run, a row
  int64_t rows_at_once = 1;  // rows of threads
  int64_t threads = 0;
  // Blocks share a tile's samples (or rows), and within a sample the vectors of large planes.
  int64_t over_outer = 1, over_inner = 1;
  int64_t outer_part = 1, inner_part = 1;

  [[nodiscard]] constexpr int64_t splits() const { return over_outer * over_inner; }
};

inline constexpr int64_t BATCH_NORM_THREADS = 256;
// A multiprocessor's registers hold at least so many blocks.
[[nodiscard]] constexpr int resident_batch_norm_blocks(bool second_derivative, int64_t size) {
  return second_derivative || size == 8 ? 2 : 3;
}

// Elements that a thread loads and stores at once: 16 bytes, of 16-bit types 8, because a thread has every coefficient
// of its channels in registers.
[[nodiscard]] constexpr int64_t batch_norm_vector(int64_t size) { return size == 8 ? 2 : 4; }

// Channels of a run's block.
inline constexpr int64_t MOST_RUN_CHANNELS = 128;
// The last block of a tile adds up what all of its blocks leave.
inline constexpr int64_t MOST_BATCH_NORM_SPLITS = 256;
// Steps of a thread that are worth a block's beginning and end.
inline constexpr int64_t BATCH_NORM_OVERHEAD = 8;

// `aligned`: all tensors [B, C, L] that are read start at a multiple of 16 bytes.
[[nodiscard]] inline BatchNormPlan plan_batch_norm(const BatchNormProblem& problem, Storage storage, bool aligned,
                                                   int64_t processors) {
  const int64_t size = size_of(storage), vector = batch_norm_vector(size);
  const int64_t channels = problem.channels, length = problem.length;
  BatchNormPlan plan;
  int64_t outer = problem.batch, inner = 1;  // rows, and vectors of a row that no block must take at once
  if (problem.channels_innermost()) {
    plan.form = Form::rows;
    plan.wide = aligned && channels % vector == 0;
    const int64_t v = plan.wide ? vector : 1, vectors = ceil_div(channels, v);
    // Rows of a block are 128 bytes wide, a line of the cache, where there are so many channels.
    const int64_t tiles = ceil_div(vectors, std::min<int64_t>(WARP_THREADS, 128 / (v * size)));
    plan.columns = ceil_div(vectors, tiles);
    plan.group = plan.columns * v;
    outer = problem.count();
  } else {
    const int64_t least = vector / std::gcd(length, vector);  // channels whose planes are whole vectors together
    // As many as make a row of a warp.
    const int64_t group = std::min(least * ceil_div(WARP_THREADS * vector, least * length), channels);
    const bool runs = aligned && (length % vector != 0 || length < 8 * vector) && channels % least == 0 &&
                      group * length <= BATCH_NORM_THREADS * vector && group <= MOST_RUN_CHANNELS;
    if (runs) {
      plan.form = Form::runs;
      plan.group = group;
      plan.columns = ceil_div(group * length, vector);
    } else {
      plan.wide = aligned && length % vector == 0;
      inner = plan.wide ? length / vector : length;
      plan.columns = ceil_div(inner, ceil_div(inner, BATCH_NORM_THREADS));
    }
  }
  plan.tiles = ceil_div(channels, plan.group);
  outer = std::max<int64_t>(outer, 1);                   // an empty batch is one empty part
  const int64_t across = ceil_div(inner, plan.columns);  // steps from a row's beginning to its end
  plan.rows_at_once =
      inner > plan.columns ? 1 : std::max<int64_t>(1, std::min(BATCH_NORM_THREADS / plan.columns, outer));
  plan.threads = round_up(plan.columns * plan.rows_at_once, WARP_THREADS);

  const int64_t down = ceil_div(outer, plan.rows_at_once);
  const int64_t splits =
      best_splits(plan.tiles, down * across, plan.threads, Pace{BATCH_NORM_OVERHEAD},
                  {processors, resident_batch_norm_blocks(false, size) * BATCH_NORM_THREADS}, MOST_BATCH_NORM_SPLITS);
  plan.outer_part = ceil_div(down, std::min(splits, down)) * plan.rows_at_once;
  plan.over_outer = ceil_div(outer, plan.outer_part);
  plan.inner_part = ceil_div(across, std::clamp<int64_t>(splits / plan.over_outer, 1, across)) * plan.columns;
  plan.over_inner = ceil_div(inner, plan.inner_part);
  return plan;
}

// What a block of a split tile leaves for the last one, and that for the next kernel: rows of partial, [C] each.
inline constexpr int64_t BATCH_NORM_PARTIAL_ROWS = 3;

// Rows of C numbers: BATCH_NORM_PARTIAL_ROWS for each split, and as many for the sums of all.
[[nodiscard]] inline int64_t batch_norm_partial_rows(const BatchNormPlan& plan) {
  return plan.splits() > 1 ? (plan.splits() + 1) * BATCH_NORM_PARTIAL_ROWS : 0;
}

}  // namespace pal_fast::cuda

// How a layer is cut into blocks: a matter of its shape, its type and the number of multiprocessors only, so that the
// same input gives the same bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "../problem.h"
#include "splits.h"
#include "storage.h"

namespace pal_fast::cuda {

inline constexpr int64_t BLOCK_THREADS = 256;

// The kernels are compiled so that a multiprocessor's registers hold at least this many blocks of them, on every
// architecture: four leave 64 registers a thread, three 80, two 128. Its shared memory holds as many where a block
// takes little, and always in the 164 KiB and more of sm_80, 90 and 100. The forward of "each" takes up to 48 KiB a
// block, of which the 100 KiB of sm_86, 89 and 120 hold two and the 64 KiB of sm_75 one; of the map kernel's largest
// blocks sm_75 holds two, in double one. Plans do not ask the device: there a layer is cut into more blocks than run at
// once. `size`: bytes of an element.
[[nodiscard]] constexpr int resident_map_blocks(bool all, int64_t size) { return all || size == 8 ? 2 : 3; }
[[nodiscard]] constexpr int resident_each_blocks(int64_t size) { return size == 8 ? 1 : 3; }
[[nodiscard]] constexpr int resident_backward_blocks(Grouping grouping, bool channels_last, int64_t size) {
  if (size == 8 || (size == 2 && channels_last && grouping == Grouping::each)) {
    return 2;  // eight channels' coefficients take a third of the registers
  }
  return size == 4 && !channels_last && grouping != Grouping::each ? 4 : 3;
}

// A sample as rows of vectors. Its elements are one flat run in which the inner index (cells; channels for
// channels_last) returns every `inner` elements. A row is the least number of whole inner runs that is a whole number
// of 16-byte vectors, so every row starts aligned, whatever H * W is, and a thread that keeps to a column keeps to the
// same inner indices. A block takes `columns` vectors of a row, `rows_at_once` rows at a time.
struct RowPlan {
  int64_t period = 0;   // elements of a row
  int64_t vectors = 0;  // of a row
  int64_t columns = 0;
  int64_t rows_at_once = 0;
  int64_t threads = 0;
  int64_t tiles = 1;  // blocks side by side along a row
  int64_t rows = 0;   // of a sample
  int64_t rows_per_split = 0;
  int64_t splits = 1;

  [[nodiscard]] int64_t blocks_per_sample() const { return tiles * splits; }
};

// `run` elements of each sample are swept; samples lie `stride` elements apart.
[[nodiscard]] inline RowPlan plan_rows(int64_t batch, int64_t stride, int64_t run, int64_t inner, int64_t vector,
                                       const Pace& pace, const Room& room) {
  RowPlan plan;
  plan.period = std::lcm(inner, vector);
  plan.vectors = plan.period / vector;
  // A sample may start within a vector; its first row then starts a little before it.
  const int64_t before = stride % vector == 0 ? 0 : vector - 1;
  plan.rows = ceil_div(run + before, plan.period);
  plan.tiles = ceil_div(plan.vectors, BLOCK_THREADS);
  plan.columns = ceil_div(plan.vectors, plan.tiles);
  plan.rows_at_once = plan.tiles > 1 ? 1 : std::min(BLOCK_THREADS / plan.columns, plan.rows);
  plan.threads = round_up(plan.columns * plan.rows_at_once, WARP_THREADS);
  const int64_t splits =
      best_splits(batch * plan.tiles, ceil_div(plan.rows, plan.rows_at_once), plan.threads, pace, room);
  plan.rows_per_split = ceil_div(plan.rows, splits);
  plan.splits = ceil_div(plan.rows, plan.rows_per_split);
  return plan;
}

// Cells that a group of threads takes at once of a channels_last layer, where a block has more than one for each.
inline constexpr int SWEEP_CELLS = 2;

// A channels_last sample as cells: groups of `lanes` threads take a cell each and sum over its channels.
struct CellPlan {
  int64_t lanes = 0;
  int64_t threads = BLOCK_THREADS;
  int64_t cells_per_split = 0;
  int64_t splits = 1;
};

[[nodiscard]] inline CellPlan plan_cells(int64_t batch, int64_t cells, int64_t count, int64_t vector,
                                         const Room& room) {
  CellPlan plan;
  const int64_t vectors = ceil_div(count, vector);
  int64_t least = 0;
  for (int64_t lanes = WARP_THREADS; lanes >= 1; lanes /= 2) {
    // Narrower groups write shorter runs, so they must save something.
    const int64_t slots = ceil_div(vectors, lanes) * lanes;
    if (plan.lanes == 0 || slots * 8 < least * 7) {
      plan.lanes = lanes;
      least = slots;
    }
  }
  const int64_t groups = plan.threads / plan.lanes;
  const int64_t steps = ceil_div(cells, groups), per_step = ceil_div(vectors, plan.lanes);
  const int64_t splits = best_splits(batch, steps, plan.threads, {ceil_div(8, per_step), SWEEP_CELLS}, room);
  plan.cells_per_split = ceil_div(cells, splits);
  plan.splits = ceil_div(cells, plan.cells_per_split);
  return plan;
}

// "each": a block takes whole channels, a tile of them at a time through shared memory.
struct EachPlan {
  int64_t chunk = 0;             // cells at once; all of them, or a part of a large map
  int64_t channels_at_once = 0;  // channels of a tile
  int64_t lanes = 1;             // threads that share a channel of a tile: a power of two
  int64_t pitch = 0;             // elements from channel to channel of a tile
  int64_t channels_per_split = 0;
  int64_t splits = 1;
};

// Shared memory, in bytes: the tile, the heatmap's chunk, and 32 for each of the block's channels. With what else a
// block keeps, the sum stays within what a kernel has without asking, 48 KiB.
inline constexpr int64_t EACH_TILE_BYTES = 20480;
inline constexpr int64_t EACH_CHUNK_BYTES = 16384;
inline constexpr int64_t EACH_TILE_BYTES_CHANNELS_LAST = 32256;
inline constexpr int64_t EACH_MOST_CHANNELS = BLOCK_THREADS;

[[nodiscard]] inline EachPlan plan_each(int64_t batch, int64_t cells, int64_t count, Layout layout, Storage storage,
                                        const Room& room) {
  const int64_t size = storage == Storage::float64 ? 8 : 4, vector = vector_of(storage);
  EachPlan plan;
  if (layout == Layout::contiguous) {
    const int64_t tile = EACH_TILE_BYTES / size;
    plan.chunk = std::min(cells, EACH_CHUNK_BYTES / size);
    plan.pitch = plan.chunk;
    // A tile is one flat run, which may start and end within a vector.
    plan.channels_at_once =
        std::clamp<int64_t>((tile - 2 * vector) / plan.chunk, 1, std::min(count, EACH_MOST_CHANNELS));
  } else {
    // Runs of four vectors of channels, 64 bytes; of two, if that spares cutting the map.
    const int64_t tile = EACH_TILE_BYTES_CHANNELS_LAST / size, channels = round_up(count, vector);
    int64_t least = std::min(4 * vector, channels);
    if ((cells | 1) * least > tile && (cells | 1) * 2 * vector <= tile) {
      least = std::min(2 * vector, channels);
    }
    plan.chunk = std::min(cells, std::min(tile / least, EACH_CHUNK_BYTES / 2 / size) - 1);
    plan.pitch = plan.chunk | 1;  // odd: threads that store the channels of neighbouring cells meet no bank twice
    // Whole sectors of 32 bytes, so that no two tiles read the same one; a vector where no sector fits.
    const int64_t sector = 2 * vector;
    plan.channels_at_once =
        std::clamp<int64_t>(tile / plan.pitch / sector * sector, vector, std::min(channels, EACH_MOST_CHANNELS));
  }
  // As many threads as a tile can occupy at once, of which each has a vector at least.
  while (2 * plan.lanes * plan.channels_at_once <= BLOCK_THREADS && 2 * plan.lanes * (16 / size) <= plan.chunk) {
    plan.lanes *= 2;
  }
  const int64_t steps = ceil_div(count, plan.channels_at_once);
  const int64_t most_steps = std::max<int64_t>(1, EACH_MOST_CHANNELS / plan.channels_at_once);
  const int64_t splits = best_splits(batch, steps, BLOCK_THREADS, Pace{1}, room);
  plan.channels_per_split = std::min(most_steps, ceil_div(steps, splits)) * plan.channels_at_once;
  plan.splits = ceil_div(count, plan.channels_per_split);
  return plan;
}

// What the forward's blocks leave for each other.
struct LossWorkspace {
  int64_t shares = 0;  // elements of T: parts of the maps
  int64_t totals = 0;  // of float64: sums
};

inline constexpr int64_t FORWARD_OVERHEAD = 4;
inline constexpr int64_t BACKWARD_OVERHEAD = 2;

[[nodiscard]] inline Room map_room(const LossProblem& problem, Storage storage, int64_t processors) {
  return {processors, resident_map_blocks(problem.grouping == Grouping::all, size_of(storage)) * BLOCK_THREADS};
}

[[nodiscard]] inline RowPlan plan_forward_rows(const LossProblem& problem, Storage storage, int64_t processors) {
  return plan_rows(problem.batch, problem.sample_elements(), problem.count * problem.cells(), problem.cells(),
                   vector_of(storage), Pace{FORWARD_OVERHEAD}, map_room(problem, storage, processors));
}

[[nodiscard]] inline CellPlan plan_forward_cells(const LossProblem& problem, Storage storage, int64_t processors) {
  return plan_cells(problem.batch, problem.cells(), problem.count, vector_of(storage),
                    map_room(problem, storage, processors));
}

[[nodiscard]] inline EachPlan plan_forward_each(const LossProblem& problem, Storage storage, int64_t processors) {
  return plan_each(problem.batch, problem.cells(), problem.count, problem.layout, storage,
                   {processors, resident_each_blocks(size_of(storage)) * BLOCK_THREADS});
}

[[nodiscard]] inline RowPlan plan_backward(const LossProblem& problem, Storage storage, int64_t processors) {
  const bool channels_last = problem.layout == Layout::channels_last;
  const int blocks = resident_backward_blocks(problem.grouping, channels_last, size_of(storage));
  return plan_rows(problem.batch, problem.sample_elements(), problem.sample_elements(),
                   channels_last ? problem.channels : problem.cells(), vector_of(storage), Pace{BACKWARD_OVERHEAD},
                   {processors, blocks * BLOCK_THREADS});
}

[[nodiscard]] inline LossWorkspace loss_workspace(const LossProblem& problem, Storage storage, int64_t processors) {
  const int64_t batch = problem.batch;
  if (problem.grouping == Grouping::each) {
    const EachPlan plan = plan_forward_each(problem, storage, processors);
    return {0, plan.splits > 1 ? batch * plan.splits : 0};
  }
  LossWorkspace workspace;
  int64_t blocks = 1;
  if (problem.layout == Layout::channels_last) {
    blocks = plan_forward_cells(problem, storage, processors).splits;
    workspace.shares = batch * problem.cells();
  } else {
    const RowPlan plan = plan_forward_rows(problem, storage, processors);
    blocks = plan.blocks_per_sample();
    workspace.shares = blocks == 1 ? 0 : batch * plan.splits * (plan.tiles == 1 ? problem.cells() : plan.period);
  }
  workspace.totals = problem.grouping == Grouping::all ? batch * blocks * 2 : 0;
  return workspace;
}

}  // namespace pal_fast::cuda

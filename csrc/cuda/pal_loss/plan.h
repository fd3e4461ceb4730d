// Launch configurations of the loss's kernels. They depend on the layer's shape and type and the number of
// multiprocessors only, so that the same input gives the same bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "cuda/block_size.h"
#include "cuda/splits.h"
#include "cuda/storage.h"
#include "problem.h"

namespace pal_fast::cuda {

// Minimum resident blocks per multiprocessor, as given to __launch_bounds__: four leave 64 registers a thread, three
// 80, two 128. Shared memory permits as many for small blocks, and for all with the 164 KiB and more of sm_80, 90 and
// 100. The forward of "each" takes up to 48 KiB a block, so that the 100 KiB of sm_86, 89 and 120 hold two and the 64
// KiB of sm_75 one. Plans ignore this: there, more blocks are launched than are resident. `size`: bytes of an element.
[[nodiscard]] constexpr int resident_map_blocks(bool all, int64_t size) { return all || size == 8 ? 2 : 3; }
[[nodiscard]] constexpr int resident_each_blocks(int64_t size) { return size == 8 ? 1 : 3; }
[[nodiscard]] constexpr int resident_backward_blocks(Grouping grouping, bool channels_last, int64_t size) {
  if (size == 8 || (size == 2 && channels_last && grouping == Grouping::each)) {
    return 2;  // the coefficients of eight channels take a third of the registers
  }
  return size == 4 && !channels_last && grouping != Grouping::each ? 4 : 3;
}

// A sample as a matrix of 16-byte vectors. Its elements are contiguous, and the inner index (cells; channels for
// channels_last) repeats every `inner` elements. A row has lcm(inner, vector) elements: every row starts aligned,
// whatever H * W is, and a column has the same inner indices in every row, so that a thread, which stays in a column,
// loads what depends on them once. A block takes a tile of `tile_columns` vectors of the rows, `rows_per_step` rows a
// step, and every `splits`-th step: so the blocks of a sample move through it together, and a kernel that takes the
// steps from the last to the first meets in L2 what the one before it read last.
struct RowPlan {
  int64_t row_elements = 0;
  int64_t row_vectors = 0;
  int64_t tile_columns = 0;
  int64_t rows_per_step = 0;
  int64_t threads = 0;
  int64_t tiles = 1;  // along a row
  int64_t rows = 0;   // of a sample
  int64_t splits = 1;

  [[nodiscard]] int64_t blocks_per_sample() const { return tiles * splits; }
};

// For the first `run` elements of each sample; samples lie `stride` elements apart.
[[nodiscard]] inline RowPlan plan_rows(int64_t batch, int64_t stride, int64_t run, int64_t inner, int64_t vector,
                                       const CostModel& cost, const Occupancy& occupancy) {
  RowPlan plan;
  plan.row_elements = std::lcm(inner, vector);
  plan.row_vectors = plan.row_elements / vector;
  // A sample may start within a vector; its first row then starts at that vector.
  const int64_t before = stride % vector == 0 ? 0 : vector - 1;
  plan.rows = ceil_div(run + before, plan.row_elements);
  plan.tiles = ceil_div(plan.row_vectors, MAX_BLOCK_THREADS);
  plan.tile_columns = ceil_div(plan.row_vectors, plan.tiles);
  plan.rows_per_step = plan.tiles > 1 ? 1 : std::min(MAX_BLOCK_THREADS / plan.tile_columns, plan.rows);
  plan.threads = round_up(plan.tile_columns * plan.rows_per_step, WARP_SIZE);
  plan.splits =
      choose_splits(batch * plan.tiles, ceil_div(plan.rows, plan.rows_per_step), plan.threads, cost, occupancy);
  return plan;
}

// Cells of a channels_last layer that a group of threads handles per iteration, if a block has more than one for each.
inline constexpr int SWEEP_CELLS = 2;

// A channels_last sample as cells: each group of `lanes` threads takes a cell and sums over its channels. A step is a
// cell for each of the block's groups, and a block takes every `splits`-th step.
struct CellPlan {
  int64_t lanes = 0;
  int64_t threads = MAX_BLOCK_THREADS;
  int64_t splits = 1;
};

[[nodiscard]] inline CellPlan plan_cells(int64_t batch, int64_t cells, int64_t count, int64_t vector,
                                         const Occupancy& occupancy) {
  CellPlan plan;
  const int64_t vectors = ceil_div(count, vector);
  int64_t padded_vectors = 0;
  for (int64_t lanes = WARP_SIZE; lanes >= 1; lanes /= 2) {
    // Narrower groups access memory in shorter runs, so they must save an eighth of the work.
    const int64_t candidate = ceil_div(vectors, lanes) * lanes;
    if (plan.lanes == 0 || candidate * 8 < padded_vectors * 7) {
      plan.lanes = lanes;
      padded_vectors = candidate;
    }
  }
  const int64_t groups = plan.threads / plan.lanes;
  const int64_t steps = ceil_div(cells, groups), per_step = ceil_div(vectors, plan.lanes);
  plan.splits = choose_splits(batch, steps, plan.threads, {ceil_div(8, per_step), SWEEP_CELLS}, occupancy);
  return plan;
}

// "each": a block takes whole channels, which pass through shared memory in tiles; it takes every `splits`-th tile.
struct EachPlan {
  int64_t chunk = 0;               // cells of a tile: all of them, or a part of a large map
  int64_t tile_channels = 0;       // channels of a tile
  int64_t tiles = 0;               // of a sample's channels
  int64_t lanes = 1;               // size of the team of threads of a channel, a power of two
  int64_t pitch = 0;               // elements from channel to channel of a tile
  int64_t channels_per_split = 0;  // at most, in whole tiles
  int64_t splits = 1;
};

// Shared memory, in bytes: the tile, the heatmap's chunk, and 32 for each of the block's channels. With the rest it
// stays within the 48 KiB that a kernel has without opting in to more.
inline constexpr int64_t EACH_TILE_BYTES = 20480;
inline constexpr int64_t EACH_CHUNK_BYTES = 16384;
inline constexpr int64_t EACH_TILE_BYTES_CHANNELS_LAST = 32256;
inline constexpr int64_t EACH_MAX_CHANNELS = MAX_BLOCK_THREADS;

[[nodiscard]] inline EachPlan plan_each(int64_t batch, int64_t cells, int64_t count, Layout layout, Storage storage,
                                        const Occupancy& occupancy) {
  const int64_t size = storage == Storage::float64 ? 8 : 4, vector = vector_elements(storage);
  EachPlan plan;
  if (layout == Layout::contiguous) {
    const int64_t tile = EACH_TILE_BYTES / size;
    plan.chunk = std::min(cells, EACH_CHUNK_BYTES / size);
    plan.pitch = plan.chunk;
    // A tile is contiguous in memory, and may start and end within a vector.
    plan.tile_channels = std::clamp<int64_t>((tile - 2 * vector) / plan.chunk, 1, std::min(count, EACH_MAX_CHANNELS));
  } else {
    // At least four vectors of channels, 64 contiguous bytes; two, if the whole map then fits.
    const int64_t tile = EACH_TILE_BYTES_CHANNELS_LAST / size, channels = round_up(count, vector);
    int64_t min_channels = std::min(4 * vector, channels);
    if ((cells | 1) * min_channels > tile && (cells | 1) * 2 * vector <= tile) {
      min_channels = std::min(2 * vector, channels);
    }
    plan.chunk = std::min(cells, std::min(tile / min_channels, EACH_CHUNK_BYTES / 2 / size) - 1);
    plan.pitch = plan.chunk | 1;  // odd: no bank conflicts when threads store the channels of neighbouring cells
    // Whole sectors of 32 bytes, so that no two tiles read the same one; a vector where no sector fits.
    const int64_t sector = 2 * vector;
    plan.tile_channels =
        std::clamp<int64_t>(tile / plan.pitch / sector * sector, vector, std::min(channels, EACH_MAX_CHANNELS));
  }
  // The largest teams for which the block covers a tile at once and every thread has at least one vector.
  while (2 * plan.lanes * plan.tile_channels <= MAX_BLOCK_THREADS && 2 * plan.lanes * (16 / size) <= plan.chunk) {
    plan.lanes *= 2;
  }
  plan.tiles = ceil_div(count, plan.tile_channels);
  const int64_t max_tiles = std::max<int64_t>(1, EACH_MAX_CHANNELS / plan.tile_channels);
  const int64_t splits = choose_splits(batch, plan.tiles, MAX_BLOCK_THREADS, CostModel{1}, occupancy);
  const int64_t tiles_per_split = std::min(max_tiles, ceil_div(plan.tiles, splits));
  plan.channels_per_split = tiles_per_split * plan.tile_channels;
  plan.splits = ceil_div(plan.tiles, tiles_per_split);
  return plan;
}

// Sizes of the forward's workspace, through which blocks of a sample combine their results.
struct LossWorkspace {
  int64_t partial_maps = 0;  // elements of T: partial sums over channels
  int64_t partial_sums = 0;  // float64: partial sums over elements, or scores
};

// Prologue and epilogue of a block, in steps of the row sweep.
inline constexpr int64_t FORWARD_OVERHEAD = 4;
inline constexpr int64_t BACKWARD_OVERHEAD = 2;

[[nodiscard]] inline Occupancy map_occupancy(const LossProblem& problem, Storage storage, int64_t multiprocessors) {
  return {multiprocessors,
          resident_map_blocks(problem.grouping == Grouping::all, element_size(storage)) * MAX_BLOCK_THREADS};
}

[[nodiscard]] inline RowPlan plan_forward_rows(const LossProblem& problem, Storage storage, int64_t multiprocessors) {
  return plan_rows(problem.batch, problem.sample_elements(), problem.count * problem.cells(), problem.cells(),
                   vector_elements(storage), CostModel{FORWARD_OVERHEAD},
                   map_occupancy(problem, storage, multiprocessors));
}

[[nodiscard]] inline CellPlan plan_forward_cells(const LossProblem& problem, Storage storage, int64_t multiprocessors) {
  return plan_cells(problem.batch, problem.cells(), problem.count, vector_elements(storage),
                    map_occupancy(problem, storage, multiprocessors));
}

[[nodiscard]] inline EachPlan plan_forward_each(const LossProblem& problem, Storage storage, int64_t multiprocessors) {
  return plan_each(problem.batch, problem.cells(), problem.count, problem.layout, storage,
                   {multiprocessors, resident_each_blocks(element_size(storage)) * MAX_BLOCK_THREADS});
}

[[nodiscard]] inline RowPlan plan_backward(const LossProblem& problem, Storage storage, int64_t multiprocessors) {
  const bool channels_last = problem.layout == Layout::channels_last;
  const int blocks = resident_backward_blocks(problem.grouping, channels_last, element_size(storage));
  return plan_rows(problem.batch, problem.sample_elements(), problem.sample_elements(),
                   channels_last ? problem.channels : problem.cells(), vector_elements(storage),
                   CostModel{BACKWARD_OVERHEAD}, {multiprocessors, blocks * MAX_BLOCK_THREADS});
}

[[nodiscard]] inline LossWorkspace loss_workspace(const LossProblem& problem, Storage storage,
                                                  int64_t multiprocessors) {
  const int64_t batch = problem.batch;
  if (problem.grouping == Grouping::each) {
    const EachPlan plan = plan_forward_each(problem, storage, multiprocessors);
    return {0, plan.splits > 1 ? batch * plan.splits : 0};
  }
  LossWorkspace workspace;
  int64_t blocks = 1;
  if (problem.layout == Layout::channels_last) {
    blocks = plan_forward_cells(problem, storage, multiprocessors).splits;
    workspace.partial_maps = batch * problem.cells();
  } else {
    const RowPlan plan = plan_forward_rows(problem, storage, multiprocessors);
    blocks = plan.blocks_per_sample();
    workspace.partial_maps =
        blocks == 1 ? 0 : batch * plan.splits * (plan.tiles == 1 ? problem.cells() : plan.row_elements);
  }
  workspace.partial_sums = problem.grouping == Grouping::all ? batch * blocks * 2 : 0;
  return workspace;
}

}  // namespace pal_fast::cuda

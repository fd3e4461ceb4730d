// Launch configurations of the heatmap's kernels. They depend on the problem, the type and the properties in
// HeatmapDevice only.
#pragma once

#include "cuda/block_size.h"
#include "cuda/splits.h"
#include "cuda/storage.h"
#include "problem.h"

namespace pal_fast::cuda {

// Maps of up to this many cells are drawn by one block each; larger ones are tiled.
inline constexpr int64_t ONE_BLOCK_CELLS = 1024;

// CUDA-core kernel, for maxima and for double: 256 threads with TILE_ROWS x TILE_COLUMNS cells each.
inline constexpr int TILE_ROWS = 4;
inline constexpr int TILE_COLUMNS = 4;

// mma kernel, for sums in float: a warp keeps the factors of MATRIX_WARP_ROWS rows (A) in registers and iterates over
// the tile's columns in stages of MATRIX_STAGE_COLUMNS, whose factors (B) all warps of the block share. It takes up to
// 168 registers a thread, so that three blocks are resident on a multiprocessor.
inline constexpr int MATRIX_WARPS = 4;
inline constexpr int MATRIX_RESIDENT_BLOCKS = 3;
inline constexpr int MATRIX_WARP_ROWS = 32;
inline constexpr int MATRIX_STAGE_COLUMNS = 64;
inline constexpr int MMA_K = 16;          // landmarks of one instruction
inline constexpr int MATRIX_K_STEPS = 4;  // m16n8k16 along the landmarks of a pass, followed by one m16n8k8
inline constexpr int MATRIX_LANDMARKS = MATRIX_K_STEPS * MMA_K + MMA_K / 2;

// wgmma kernel, likewise: each warpgroup keeps the factors of WARPGROUP_ROWS rows, of all landmarks.
inline constexpr int WARPGROUPS = 2;
inline constexpr int WARPGROUP_RESIDENT_BLOCKS = 2;
inline constexpr int WARPGROUP_ROWS = 64;
inline constexpr int WARPGROUP_STAGE_COLUMNS = 64;
inline constexpr int WARPGROUP_LANDMARKS = 80;
inline constexpr int64_t WARPGROUP_WARPS = 4;

// The properties of a device that a plan depends on.
struct HeatmapDevice {
  int64_t multiprocessors = 1;
  bool has_wgmma = false;
};

struct HeatmapTiles {
  bool uses_wgmma = false;
  int lanes = 0;              // CUDA-core kernel: threads along a tile's columns
  int row_warps = 1;          // mma kernel: warps along a tile's rows, 1, 2 or 4; the others split the columns
  int rows = 0, columns = 0;  // of a tile
  int64_t tiles_along_rows = 1, tiles_along_columns = 1;

  [[nodiscard]] constexpr int64_t count() const { return tiles_along_rows * tiles_along_columns; }
};

[[nodiscard]] constexpr bool fits_one_block(const HeatmapProblem& problem) {
  return problem.cells() <= ONE_BLOCK_CELLS;
}
[[nodiscard]] constexpr bool uses_tensor_cores(const HeatmapProblem& problem, Storage storage) {
  return !fits_one_block(problem) && storage == Storage::float32 && problem.combine == Combine::sum;
}

// Tiles a map by `tiles.rows` rows and, in columns, by the number of stages that the split heuristic chooses, at most
// `max_stages`. A block's prologue, the factors of the tile's rows, takes about as long as a stage.
inline void choose_tile_columns(HeatmapTiles& tiles, const HeatmapProblem& problem, int stage_columns,
                                int64_t max_stages, int64_t threads, int64_t resident_blocks, int64_t multiprocessors) {
  tiles.tiles_along_rows = ceil_div(problem.height, tiles.rows);
  const int64_t stages = ceil_div(problem.width, stage_columns);
  const int64_t splits = choose_splits(problem.batch * tiles.tiles_along_rows, stages, threads, CostModel{1},
                                       {multiprocessors, resident_blocks * threads});
  const int64_t tile_stages = std::min(ceil_div(stages, splits), max_stages);
  tiles.columns = static_cast<int>(tile_stages) * stage_columns;
  tiles.tiles_along_columns = ceil_div(stages, tile_stages);
}

[[nodiscard]] inline HeatmapTiles plan_matrix_tiles(const HeatmapProblem& problem, int64_t multiprocessors) {
  HeatmapTiles tiles;
  while (tiles.row_warps < MATRIX_WARPS && tiles.row_warps * MATRIX_WARP_ROWS < problem.height) {
    tiles.row_warps *= 2;
  }
  tiles.rows = tiles.row_warps * MATRIX_WARP_ROWS;
  // With more than MATRIX_LANDMARKS landmarks, every further pass over them reads and writes the tile again; a tile of
  // one stage stays in L2 meanwhile.
  const int64_t max_stages = problem.landmarks > MATRIX_LANDMARKS ? 1 : problem.width;
  choose_tile_columns(tiles, problem, MATRIX_STAGE_COLUMNS, max_stages, MATRIX_WARPS * WARP_SIZE,
                      MATRIX_RESIDENT_BLOCKS, multiprocessors);
  return tiles;
}

// Whether a warpgroup holds the factors of all landmarks, and padding the height to whole warpgroups wastes at most a
// quarter of the work.
[[nodiscard]] constexpr bool fits_wgmma(const HeatmapProblem& problem) {
  return problem.landmarks <= WARPGROUP_LANDMARKS && 3 * round_up(problem.height, WARPGROUP_ROWS) <= 4 * problem.height;
}

[[nodiscard]] inline HeatmapTiles plan_warpgroup_tiles(const HeatmapProblem& problem, int64_t multiprocessors) {
  HeatmapTiles tiles;
  tiles.uses_wgmma = true;
  tiles.rows = WARPGROUPS * WARPGROUP_ROWS;
  choose_tile_columns(tiles, problem, WARPGROUP_STAGE_COLUMNS, problem.width, WARPGROUPS * WARPGROUP_WARPS * WARP_SIZE,
                      WARPGROUP_RESIDENT_BLOCKS, multiprocessors);
  return tiles;
}

[[nodiscard]] inline HeatmapTiles plan_heatmap_tiles(const HeatmapProblem& problem, Storage storage,
                                                     const HeatmapDevice& device) {
  if (fits_one_block(problem)) {
    return {};
  }
  if (uses_tensor_cores(problem, storage)) {
    return device.has_wgmma && fits_wgmma(problem) ? plan_warpgroup_tiles(problem, device.multiprocessors)
                                                   : plan_matrix_tiles(problem, device.multiprocessors);
  }
  HeatmapTiles best;
  for (const int lanes : {32, 16, 8}) {  // wider tiles are stored in longer contiguous runs
    HeatmapTiles tiles;
    tiles.lanes = lanes;
    tiles.rows = MAX_BLOCK_THREADS / lanes * TILE_ROWS;
    tiles.columns = lanes * TILE_COLUMNS;
    tiles.tiles_along_rows = ceil_div(problem.height, tiles.rows);
    tiles.tiles_along_columns = ceil_div(problem.width, tiles.columns);
    best = best.lanes == 0 || tiles.count() < best.count() ? tiles : best;
  }
  return best;
}

// Whether the forward needs the workspace `divisors` and `tickets`, and the backward `raw`.
[[nodiscard]] inline bool heatmap_needs_divisors(const HeatmapProblem& problem, Storage storage,
                                                 const HeatmapTiles& tiles) {
  return problem.normalize != Normalize::none && (tiles.count() > 1 || uses_tensor_cores(problem, storage));
}
[[nodiscard]] constexpr bool heatmap_needs_raw(const HeatmapProblem& problem) {
  return problem.normalize != Normalize::none || problem.combine == Combine::max;
}

}  // namespace pal_fast::cuda

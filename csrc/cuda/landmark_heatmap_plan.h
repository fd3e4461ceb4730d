// How heatmaps are cut into blocks: a matter of their shape, their type and the number of multiprocessors only.
#pragma once

#include "../problem.h"
#include "splits.h"
#include "storage.h"

namespace pal_fast::cuda {

// Maps of up to this many cells are drawn by one block each; larger ones are cut into tiles.
inline constexpr int64_t WHOLE_MAP_CELLS = 1024;

// Tiles of maxima and of double: 256 threads with TILE_ROWS x TILE_COLUMNS cells each.
inline constexpr int TILE_ROWS = 4;
inline constexpr int TILE_COLUMNS = 4;

// Tiles of sums of float, which are products on tensor cores: a warp keeps the factors of MATRIX_ROWS rows in registers
// and goes through the tile's columns, MATRIX_COLUMNS at a time, whose factors all warps of the block share. It takes
// up to 168 registers a thread, of which a multiprocessor has enough for three blocks.
inline constexpr int MATRIX_WARPS = 4;
inline constexpr int MATRIX_RESIDENT_BLOCKS = 3;
inline constexpr int MATRIX_ROWS = 32;
inline constexpr int MATRIX_COLUMNS = 64;
inline constexpr int MATRIX_DEPTH = 16;  // landmarks of one instruction
inline constexpr int MATRIX_STEPS = 4;   // instructions, and half a one, along the landmarks that are kept at once
inline constexpr int MATRIX_LANDMARKS = MATRIX_STEPS * MATRIX_DEPTH + MATRIX_DEPTH / 2;

// The same where warpgroups multiply: each keeps the factors of WARPGROUP_ROWS rows, of all landmarks.
inline constexpr int WARPGROUPS = 2;
inline constexpr int WARPGROUP_RESIDENT_BLOCKS = 2;
inline constexpr int WARPGROUP_ROWS = 64;
inline constexpr int WARPGROUP_COLUMNS = 64;
inline constexpr int WARPGROUP_LANDMARKS = 80;
inline constexpr int64_t WARPGROUP_WARPS = 4;

// What a plan asks of a device.
struct HeatmapDevice {
  int64_t processors = 1;
  bool warpgroups = false;  // whether they multiply matrices (wgmma)
};

struct HeatmapTiles {
  bool warpgroups = false;
  int lanes = 0;              // threads along a tile's columns; 0 on tensor cores
  int row_warps = 1;          // on tensor cores without warpgroups, warps along a tile's rows: 1, 2 or 4
  int rows = 0, columns = 0;  // of a tile
  int64_t along_rows = 1, along_columns = 1;

  [[nodiscard]] constexpr int64_t count() const { return along_rows * along_columns; }
};

[[nodiscard]] constexpr bool drawn_whole(const HeatmapProblem& problem) { return problem.cells() <= WHOLE_MAP_CELLS; }
[[nodiscard]] constexpr bool drawn_on_tensor_cores(const HeatmapProblem& problem, Storage storage) {
  return !drawn_whole(problem) && storage == Storage::float32 && problem.combine == Combine::sum;
}

// Cuts a map into tiles of `tiles.rows` rows and of as many groups of columns as keep all blocks busy, one at least and
// `most` at most. Drawing the factors of a tile's rows takes about as long as a group of columns.
inline void cut_into_tiles(HeatmapTiles& tiles, const HeatmapProblem& problem, int group, int64_t most, int64_t threads,
                           int64_t resident_blocks, int64_t processors) {
  tiles.along_rows = ceil_div(problem.height, tiles.rows);
  const int64_t groups = ceil_div(problem.width, group);
  const int64_t splits =
      best_splits(problem.batch * tiles.along_rows, groups, threads, Pace{1}, {processors, resident_blocks * threads});
  const int64_t groups_of_tile = std::min(ceil_div(groups, splits), most);
  tiles.columns = static_cast<int>(groups_of_tile) * group;
  tiles.along_columns = ceil_div(groups, groups_of_tile);
}

[[nodiscard]] inline HeatmapTiles plan_matrix_tiles(const HeatmapProblem& problem, int64_t processors) {
  HeatmapTiles tiles;
  while (tiles.row_warps < MATRIX_WARPS && tiles.row_warps * MATRIX_ROWS < problem.height) {
    tiles.row_warps *= 2;
  }
  tiles.rows = tiles.row_warps * MATRIX_ROWS;
  // A tile that is read and written once for each MATRIX_LANDMARKS of more landmarks is to stay in L2 meanwhile.
  const int64_t most = problem.landmarks > MATRIX_LANDMARKS ? 1 : problem.width;
  cut_into_tiles(tiles, problem, MATRIX_COLUMNS, most, MATRIX_WARPS * WARP_THREADS, MATRIX_RESIDENT_BLOCKS, processors);
  return tiles;
}

// Whether warpgroups compute little more than there is to draw.
[[nodiscard]] constexpr bool fits_warpgroups(const HeatmapProblem& problem) {
  return problem.landmarks <= WARPGROUP_LANDMARKS && 3 * round_up(problem.height, WARPGROUP_ROWS) <= 4 * problem.height;
}

[[nodiscard]] inline HeatmapTiles plan_warpgroup_tiles(const HeatmapProblem& problem, int64_t processors) {
  HeatmapTiles tiles;
  tiles.warpgroups = true;
  tiles.rows = WARPGROUPS * WARPGROUP_ROWS;
  cut_into_tiles(tiles, problem, WARPGROUP_COLUMNS, problem.width, WARPGROUPS * WARPGROUP_WARPS * WARP_THREADS,
                 WARPGROUP_RESIDENT_BLOCKS, processors);
  return tiles;
}

[[nodiscard]] inline HeatmapTiles plan_heatmap_tiles(const HeatmapProblem& problem, Storage storage,
                                                     const HeatmapDevice& device) {
  if (drawn_whole(problem)) {
    return {};
  }
  if (drawn_on_tensor_cores(problem, storage)) {
    return device.warpgroups && fits_warpgroups(problem) ? plan_warpgroup_tiles(problem, device.processors)
                                                         : plan_matrix_tiles(problem, device.processors);
  }
  HeatmapTiles best;
  for (const int lanes : {32, 16, 8}) {  // the wider, the longer the runs that are written
    HeatmapTiles tiles;
    tiles.lanes = lanes;
    tiles.rows = 256 / lanes * TILE_ROWS;
    tiles.columns = lanes * TILE_COLUMNS;
    tiles.along_rows = ceil_div(problem.height, tiles.rows);
    tiles.along_columns = ceil_div(problem.width, tiles.columns);
    best = best.lanes == 0 || tiles.count() < best.count() ? tiles : best;
  }
  return best;
}

// Whether the forward needs divisors and tickets, and the backward raw.
[[nodiscard]] inline bool heatmap_divides_tiles(const HeatmapProblem& problem, Storage storage,
                                                const HeatmapTiles& tiles) {
  return problem.normalize != Normalize::none && (tiles.count() > 1 || drawn_on_tensor_cores(problem, storage));
}
[[nodiscard]] constexpr bool heatmap_needs_raw(const HeatmapProblem& problem) {
  return problem.normalize != Normalize::none || problem.combine == Combine::max;
}

}  // namespace pal_fast::cuda

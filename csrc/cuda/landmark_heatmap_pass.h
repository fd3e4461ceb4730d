// What a launch of the heatmap's CUDA kernels is given. Plain numbers and device pointers.
#pragma once

#include "../problem.h"
#include "storage.h"

namespace pal_fast::cuda {

// landmarks [B, K, 2], visible [B, K], weights [B, K], heatmaps [B, H, W]; what is absent is null. Elements are of
// `storage`, float32 or float64, unless told otherwise.
struct HeatmapPass {
  HeatmapProblem problem;
  Storage storage = Storage::float32;
  const void* landmarks = nullptr;
  const void* visible = nullptr;  // bool
  const void* weights = nullptr;
  void* heatmap = nullptr;      // [B, H, W], written by the forward
  void* divisors = nullptr;     // [B, tiles] float64, workspace: each tile's maximum or total
  unsigned* tickets = nullptr;  // [B] zeros, left at zero
  const void* grad = nullptr;   // [B, H, W]
  void* raw = nullptr;          // [B, H, W], workspace: the gradient of the heatmap before it was normalised
  void* winner = nullptr;       // [B, H, W] int32, workspace of Combine::max
  void* d_landmarks = nullptr;  // [B, K, 2]
  void* d_weights = nullptr;    // [B, K]
};

// Maps of up to this many cells are drawn by one block each; larger ones are cut into tiles.
inline constexpr int64_t WHOLE_MAP_CELLS = 1024;

// A tile: `lanes` threads along the columns, TILE_COLUMNS columns each; 256 / lanes threads along the rows.
inline constexpr int TILE_ROWS = 4;
inline constexpr int TILE_COLUMNS = 4;

struct HeatmapTiles {
  int lanes = 0;  // 0: the map is drawn whole
  int64_t along_rows = 1;
  int64_t along_columns = 1;

  [[nodiscard]] constexpr int64_t count() const { return along_rows * along_columns; }
};

[[nodiscard]] constexpr HeatmapTiles heatmap_tiles(const HeatmapProblem& problem) {
  if (problem.cells() <= WHOLE_MAP_CELLS) {
    return {};
  }
  HeatmapTiles best;
  for (const int lanes : {32, 16, 8}) {  // the wider, the longer the runs that are written
    const int64_t columns = lanes * TILE_COLUMNS, rows = 256 / lanes * TILE_ROWS;
    const HeatmapTiles tiles{lanes, (problem.height + rows - 1) / rows, (problem.width + columns - 1) / columns};
    if (best.lanes == 0 || tiles.count() < best.count()) {
      best = tiles;
    }
  }
  return best;
}

// Whether the forward needs divisors and tickets, and the backward raw.
[[nodiscard]] constexpr bool heatmap_divides_tiles(const HeatmapProblem& problem) {
  return problem.normalize != Normalize::none && heatmap_tiles(problem).count() > 1;
}
[[nodiscard]] constexpr bool heatmap_needs_raw(const HeatmapProblem& problem) {
  return problem.normalize != Normalize::none || problem.combine == Combine::max;
}

// `stream` is a cudaStream_t. Launches: forward 1; backward 1, or 2 if heatmap_needs_raw.
void launch_landmark_heatmap(const HeatmapPass& pass, void* stream);
void launch_landmark_heatmap_backward(const HeatmapPass& pass, void* stream);

}  // namespace pal_fast::cuda

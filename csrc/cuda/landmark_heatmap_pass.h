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

// A tile of `rows` x `columns` cells: of one shape on tensor cores, which draw sums of float; otherwise of 256 threads
// with TILE_ROWS x TILE_COLUMNS cells each, `lanes` of them along the columns.
inline constexpr int TILE_ROWS = 4;
inline constexpr int TILE_COLUMNS = 4;
inline constexpr int MATRIX_ROWS = 64;
inline constexpr int MATRIX_COLUMNS = 128;

struct HeatmapTiles {
  int lanes = 0;  // 0 on tensor cores
  int64_t along_rows = 1;
  int64_t along_columns = 1;

  [[nodiscard]] constexpr int64_t count() const { return along_rows * along_columns; }
};

[[nodiscard]] constexpr bool drawn_whole(const HeatmapProblem& problem) { return problem.cells() <= WHOLE_MAP_CELLS; }

[[nodiscard]] constexpr HeatmapTiles heatmap_tiles(const HeatmapProblem& problem, Storage storage) {
  if (drawn_whole(problem)) {
    return {};
  }
  const auto tiles_of = [&](int lanes, int64_t rows, int64_t columns) {
    return HeatmapTiles{lanes, (problem.height + rows - 1) / rows, (problem.width + columns - 1) / columns};
  };
  if (storage == Storage::float32 && problem.combine == Combine::sum) {
    return tiles_of(0, MATRIX_ROWS, MATRIX_COLUMNS);
  }
  HeatmapTiles best =
      tiles_of(32, 8 * TILE_ROWS, 32 * TILE_COLUMNS);  // the wider, the longer the runs that are written
  for (const int lanes : {16, 8}) {
    const HeatmapTiles tiles = tiles_of(lanes, 256 / lanes * TILE_ROWS, lanes * TILE_COLUMNS);
    best = tiles.count() < best.count() ? tiles : best;
  }
  return best;
}

// Whether the forward needs divisors and tickets, and the backward raw.
[[nodiscard]] constexpr bool heatmap_divides_tiles(const HeatmapProblem& problem, Storage storage) {
  return problem.normalize != Normalize::none && heatmap_tiles(problem, storage).count() > 1;
}
[[nodiscard]] constexpr bool heatmap_needs_raw(const HeatmapProblem& problem) {
  return problem.normalize != Normalize::none || problem.combine == Combine::max;
}

// `stream` is a cudaStream_t. Launches: forward 1; backward 1, or 2 if heatmap_needs_raw.
void launch_landmark_heatmap(const HeatmapPass& pass, void* stream);
void launch_landmark_heatmap_backward(const HeatmapPass& pass, void* stream);

}  // namespace pal_fast::cuda

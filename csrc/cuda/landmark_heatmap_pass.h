// What a launch of the heatmap's CUDA kernels is given. Plain numbers and device pointers.
#pragma once

#include "landmark_heatmap_plan.h"

namespace pal_fast::cuda {

// landmarks [B, K, 2], visible [B, K], weights [B, K], heatmaps [B, H, W]; what is absent is null. Elements are of
// `storage`, float32 or float64, unless told otherwise.
struct HeatmapPass {
  HeatmapProblem problem;
  Storage storage = Storage::float32;
  HeatmapTiles tiles;  // of the forward
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

// `stream` is a cudaStream_t. Launches: forward 1; backward 1, or 2 if heatmap_needs_raw.
void launch_landmark_heatmap(const HeatmapPass& pass, void* stream);
void launch_landmark_heatmap_by_warpgroups(const HeatmapPass& pass, void* stream);  // if the tiles are for them
void launch_landmark_heatmap_backward(const HeatmapPass& pass, void* stream);

}  // namespace pal_fast::cuda

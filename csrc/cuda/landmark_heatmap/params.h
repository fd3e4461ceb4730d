// The parameters of a launch of the heatmap's CUDA kernels: plain numbers and device pointers, without PyTorch.
#pragma once

#include "cuda/landmark_heatmap/plan.h"

namespace pal_fast::cuda {

// Elements are of type `storage`, float32 or float64, unless stated otherwise. Absent tensors are null.
struct HeatmapParams {
  HeatmapProblem problem;
  Storage storage = Storage::float32;
  HeatmapTiles tiles;               // of the forward
  const void* landmarks = nullptr;  // [B, K, 2]
  const void* visible = nullptr;    // [B, K] bool
  const void* weights = nullptr;    // [B, K]
  void* heatmap = nullptr;          // [B, H, W], written by the forward
  void* divisors = nullptr;         // [B, tiles] float64, workspace: each tile's maximum or total
  unsigned* tickets = nullptr;      // [B] arrival counters (is_last_block)
  const void* grad = nullptr;       // [B, H, W]
  void* raw = nullptr;              // [B, H, W], workspace: the gradient of the heatmap before it was normalised
  void* winner = nullptr;           // [B, H, W] int32, workspace of Combine::max: the landmark that attains the maximum
  void* d_landmarks = nullptr;      // [B, K, 2]
  void* d_weights = nullptr;        // [B, K]
};

// `stream` is a cudaStream_t. The forward launches one kernel, the backward one, or two if heatmap_needs_raw.
void launch_landmark_heatmap(const HeatmapParams& params, void* stream);
void launch_landmark_heatmap_wgmma(const HeatmapParams& params, void* stream);  // if tiles.uses_wgmma
void launch_landmark_heatmap_backward(const HeatmapParams& params, void* stream);

}  // namespace pal_fast::cuda

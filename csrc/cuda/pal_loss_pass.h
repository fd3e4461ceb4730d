// What a launch of the loss's CUDA kernels is given. Plain numbers and device pointers.
#pragma once

#include "../problem.h"
#include "storage.h"

namespace pal_fast::cuda {

// The layer's tensors [B, C, H, W] are of `storage`; T, the type of all others unless told otherwise, is float64 for
// float64 and float32 for the rest. What is absent is null.
struct LossPass {
  LossProblem problem;
  ScoreOptions options;
  HeatmapProblem heatmap;  // of the landmarks
  Storage storage = Storage::float32;
  const void* activation = nullptr;     // [B, C, H, W]
  const void* gradient = nullptr;       // [B, C, H, W]
  const void* dense = nullptr;          // [B, H, W]: a heatmap in place of landmarks
  const void* landmarks = nullptr;      // [B, K, 2]
  const void* visible = nullptr;        // [B, K] bool
  const void* weights = nullptr;        // [B, K]
  const void* sample_weight = nullptr;  // [B]
  void* loss = nullptr;                 // [] or [B]
  void* plane = nullptr;                // [B, H, W]
  void* coefficients = nullptr;         // [B, G, 3]
  void* factor = nullptr;               // [B]
  void* shares = nullptr;               // [loss_workspace().shares], workspace: the blocks' parts of the map
  void* totals = nullptr;               // [loss_workspace().totals] float64, workspace: the blocks' sums
  void* scores = nullptr;               // [B, 2] float64, workspace: P_b and w_b
  unsigned* tickets = nullptr;          // [B + 1] zeros, left at zero
};

// plane, coefficients and factor as the forward wrote them.
struct LossBackwardPass {
  LossProblem problem;
  Storage storage = Storage::float32;
  const void* grad_loss = nullptr;  // [] or [B]
  int64_t grad_loss_stride = 0;
  const void* activation = nullptr;    // [B, C, H, W], null where nothing needs it
  const void* gradient = nullptr;      // [B, C, H, W], likewise
  const void* plane = nullptr;         // [B, H, W]
  const void* coefficients = nullptr;  // [B, G, 3]
  const void* factor = nullptr;        // [B]
  void* d_activation = nullptr;        // [B, C, H, W], null where it is not needed
  void* d_gradient = nullptr;          // [B, C, H, W], likewise
};

// Which tensors the backward has to read. The attribution enters its own derivative, except for a map; else df = d |g|
// and dg = d f sign(g) need a part of it each.
[[nodiscard]] constexpr bool backward_reads_activation(const LossBackwardPass& pass) {
  return pass.problem.grouping != Grouping::map || pass.d_gradient != nullptr;
}
[[nodiscard]] constexpr bool backward_reads_gradient(const LossBackwardPass& pass) {
  return pass.problem.grouping != Grouping::map || pass.d_activation != nullptr || pass.problem.absolute;
}

// `stream` is a cudaStream_t; `processors` the number that the workspace was made for. One launch each.
void launch_map_forward(const LossPass& pass, int processors, void* stream);
void launch_each_forward(const LossPass& pass, int processors, void* stream);
void launch_pal_loss_backward(const LossBackwardPass& pass, int processors, void* stream);

}  // namespace pal_fast::cuda

// The parameters of a launch of the loss's CUDA kernels: plain numbers and device pointers, without PyTorch.
#pragma once

#include "cuda/storage.h"
#include "problem.h"

namespace pal_fast::cuda {

// The layer's tensors [B, C, H, W] are of type `storage`; all others are of type T, float64 for a float64 layer and
// float32 otherwise, unless stated otherwise. Absent tensors are null.
struct LossParams {
  LossProblem problem;
  ScoreOptions options;
  HeatmapProblem heatmap;  // of the landmarks
  Storage storage = Storage::float32;
  const void* activation = nullptr;     // [B, C, H, W]
  const void* gradient = nullptr;       // [B, C, H, W]
  const void* dense = nullptr;          // [B, H, W]: a dense heatmap in place of landmarks
  const void* landmarks = nullptr;      // [B, K, 2]
  const void* visible = nullptr;        // [B, K] bool
  const void* weights = nullptr;        // [B, K]
  const void* sample_weight = nullptr;  // [B]
  void* loss = nullptr;                 // [] or [B]
  void* plane = nullptr;                // [B, H, W]
  void* coefficients = nullptr;         // [B, G, 3]
  void* factor = nullptr;               // [B]
  void* partial_maps = nullptr;         // [LossWorkspace::partial_maps], workspace
  void* partial_sums = nullptr;         // [LossWorkspace::partial_sums] float64, workspace
  void* scores = nullptr;               // [B, 2] float64, workspace: P_b and w_b
  unsigned* tickets = nullptr;          // [B + 1] arrival counters (is_last_block)
};

// plane, coefficients and factor are outputs of the forward.
struct LossBackwardParams {
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

// Which tensors the backward reads. Except for Grouping::map, dP/da depends on the attribution and so on both; for a
// map, df = d |g| needs g only, and dg = d f sign(g) needs f and, with `absolute`, g.
[[nodiscard]] constexpr bool backward_reads_activation(const LossBackwardParams& params) {
  return params.problem.grouping != Grouping::map || params.d_gradient != nullptr;
}
[[nodiscard]] constexpr bool backward_reads_gradient(const LossBackwardParams& params) {
  return params.problem.grouping != Grouping::map || params.d_activation != nullptr || params.problem.absolute;
}

// `stream` is a cudaStream_t; `multiprocessors` must be what the workspace was sized for. One kernel each.
void launch_map_forward(const LossParams& params, int multiprocessors, void* stream);
void launch_each_forward(const LossParams& params, int multiprocessors, void* stream);
void launch_pal_loss_backward(const LossBackwardParams& params, int multiprocessors, void* stream);

}  // namespace pal_fast::cuda

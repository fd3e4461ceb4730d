// The parameters of a launch of batch normalisation's CUDA kernels: plain numbers and device pointers, without PyTorch.
#pragma once

#include <cstdint>

#include "cuda/batch_norm/plan.h"

namespace pal_fast::cuda {

// Tensors are [B, C, L] of type `storage` in the problem's layout, per-channel vectors [C] or [2, C] of type T. What an
// operator does not have is null.
struct BatchNormParams {
  BatchNormProblem problem;
  BatchNormPlan plan;
  Storage storage = Storage::float32;
  const void* input = nullptr;
  const void* grad = nullptr;
  const void* grad_grad = nullptr;  // v
  const void* weight = nullptr;
  const void* bias = nullptr;
  const void* sums = nullptr;       // of the backward, read by the double backward
  const void* grad_sums = nullptr;  // u
  void* statistics = nullptr;       // written by batch_norm_statistics, read by the rest
  void* running_mean = nullptr;
  void* running_variance = nullptr;
  double momentum = 0;
  double eps = 0;
  void* output = nullptr;          // y, dx or d_grad
  void* second_output = nullptr;   // d_input
  void* channel_output = nullptr;  // sums [2, C] of the backward, d_weight [C] of the double backward
  // Workspace, if tiles are split:
  void* partial = nullptr;      // [batch_norm_partial_rows(), C] of T
  unsigned* tickets = nullptr;  // [tiles] arrival counters (is_last_block)
};

// `stream` is a cudaStream_t. One kernel each; for the derivatives two if tiles are split and sums are needed.
void launch_batch_norm_statistics(const BatchNormParams& params, void* stream);
void launch_batch_norm_forward(const BatchNormParams& params, void* stream);
void launch_batch_norm_backward(const BatchNormParams& params, void* stream);
void launch_batch_norm_double_backward(const BatchNormParams& params, void* stream);

}  // namespace pal_fast::cuda

// What a launch of batch normalisation's CUDA kernels is given. Plain numbers and device pointers.
#pragma once

#include <cstdint>

#include "../batch_norm_problem.h"
#include "storage.h"

namespace pal_fast::cuda {

// Tensors [B, C, L] in the problem's layout, vectors [C] and [2, C] of T. What an operator does not have is null.
struct BatchNormPass {
  BatchNormProblem problem;
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
  void* partial = nullptr;         // [splits, batch_norm_partial_rows, C] of T
};

// How the reduction over a channel's M elements is split among blocks: a matter of the problem and the device only.
// Blocks share the batch (and, within a sample, the positions) or, with channels innermost, the rows.
struct BatchNormSplit {
  int64_t over_batch = 1;
  int64_t over_length = 1;

  [[nodiscard]] constexpr int64_t count() const { return over_batch * over_length; }
};

inline constexpr int64_t BATCH_NORM_PARTIAL_ROWS = 3;

[[nodiscard]] BatchNormSplit split_batch_norm(const BatchNormProblem& problem, Storage storage, int processors);

// `partial` must hold split.count() * BATCH_NORM_PARTIAL_ROWS * C numbers of T where split.count() > 1 or the
// channels are innermost. `stream` is a cudaStream_t. Launches: at most 2; forward 1.
void launch_batch_norm_statistics(const BatchNormPass& pass, const BatchNormSplit& split, void* stream);
void launch_batch_norm_forward(const BatchNormPass& pass, const BatchNormSplit& split, void* stream);
void launch_batch_norm_backward(const BatchNormPass& pass, const BatchNormSplit& split, void* stream);
void launch_batch_norm_double_backward(const BatchNormPass& pass, const BatchNormSplit& split, void* stream);

}  // namespace pal_fast::cuda

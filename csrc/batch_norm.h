// Batch normalisation: arguments, checks and allocation common to all backends.
#pragma once

#include <tuple>

#include "batch_norm_problem.h"
#include "checks.h"

namespace pal_fast {

// The input tensors of all four operators; an operator leaves those that it does not have empty.
struct BatchNormTensors {
  const Tensor& input;                   // [B, C], [B, C, L] or [B, C, H, W]
  OptionalTensor grad = {};              // as input
  OptionalTensor grad_grad = {};         // as input
  OptionalTensor weight = {};            // [C] T
  OptionalTensor bias = {};              // [C] T
  OptionalTensor statistics = {};        // [2, C] T: mean, 1/sqrt(var + eps)
  OptionalTensor sums = {};              // [2, C] T: sum G, sum G z; 0 elements if not needed
  OptionalTensor grad_sums = {};         // [2, C] T
  OptionalTensor running_mean = {};      // [C] T
  OptionalTensor running_variance = {};  // [C] T
};

// `other` in the input's memory format, if it has the input's shape; a copy only if the formats differ. A compiled
// graph may pass another format than it was traced with: PyTorch orders the strides of an expanded tensor one way when
// traced and another when run.
[[nodiscard]] OptionalTensor in_format_of(const Tensor& input, const OptionalTensor& other);

// Checks shapes, dtypes, layouts and devices against the input's.
[[nodiscard]] BatchNormProblem check_batch_norm(const BatchNormTensors& tensors, bool training, bool relu);

// Checks that the running statistics are given outside training, and that M is at least 2 in training.
void check_running(const BatchNormTensors& tensors, bool training);

// Uninitialised, of the input's shape and strides; 0 elements if not needed.
[[nodiscard]] Tensor allocate_like_input(const Tensor& input, bool needed);

// Uninitialised [rows, C] of type T ([C] for rows = 0) on the input's device.
[[nodiscard]] Tensor allocate_per_channel(const Tensor& input, int64_t rows);

}  // namespace pal_fast

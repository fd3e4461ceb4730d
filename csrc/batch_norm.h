// Batch normalisation: what every backend of the operators shares.
#pragma once

#include <tuple>

#include "batch_norm_problem.h"
#include "checks.h"

namespace pal_fast {

// The tensors of all four operators that share a shape or a dtype; absent ones are empty.
struct BatchNormTensors {
  const Tensor& input;                   // [B, C], [B, C, L] or [B, C, H, W]
  OptionalTensor grad = {};              // as input
  OptionalTensor grad_grad = {};         // as input
  OptionalTensor weight = {};            // [C] T
  OptionalTensor bias = {};              // [C] T
  OptionalTensor statistics = {};        // [2, C] T: mean, 1/sqrt(var + eps)
  OptionalTensor sums = {};              // [2, C] T: sum G, sum G z; 0 elements where it is not needed
  OptionalTensor grad_sums = {};         // [2, C] T
  OptionalTensor running_mean = {};      // [C] T
  OptionalTensor running_variance = {};  // [C] T
};

// `other` in the memory format of the input, if it has its shape; a copy only where the formats differ. A graph that
// torch.compile made may hand over another format than it was traced with: PyTorch orders the strides of an expanded
// tensor one way when traced and another when run.
[[nodiscard]] OptionalTensor in_format_of(const Tensor& input, const OptionalTensor& other);

// Checks shapes, dtypes, layouts and devices against the input's.
[[nodiscard]] BatchNormProblem check_batch_norm(const BatchNormTensors& tensors, bool training, bool relu);

// Outside training the running statistics must be given; in training M must be at least 2.
void check_running(const BatchNormTensors& tensors, bool training);

// Uninitialised, of the input's shape and strides; 0 elements if not needed.
[[nodiscard]] Tensor allocate_like_input(const Tensor& input, bool needed);

// Uninitialised [rows, C] of type T ([C] for rows = 0) on the input's device.
[[nodiscard]] Tensor allocate_per_channel(const Tensor& input, int64_t rows);

}  // namespace pal_fast

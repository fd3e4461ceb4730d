// Batch normalisation, between the operators (batch_norm.cpp), which check arguments and allocate outputs, and the
// backends, which compute.
#pragma once

#include "batch_norm_problem.h"
#include "tensors.h"

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

// Uninitialised [rows, C] of type T ([C] for rows = 0) on the input's device.
[[nodiscard]] Tensor allocate_per_channel(const Tensor& input, int64_t rows);

// What a backend computes. Gradients that are not needed have 0 elements.
struct BatchNormBackend {
  // Writes the statistics and updates the running ones.
  void (*statistics)(const BatchNormTensors& tensors, const BatchNormProblem& problem, double momentum, double eps,
                     const Tensor& statistics);
  void (*forward)(const BatchNormTensors& tensors, const BatchNormProblem& problem, const Tensor& output);
  // sums: [2, C]
  void (*backward)(const BatchNormTensors& tensors, const BatchNormProblem& problem, const Tensor& grad_input,
                   const Tensor& sums);
  // grad_grad, grad_input: as input; grad_weight: [C]
  void (*double_backward)(const BatchNormTensors& tensors, const BatchNormProblem& problem, const Tensor& grad_grad,
                          const Tensor& grad_input, const Tensor& grad_weight);
};

namespace cpu {
extern const BatchNormBackend batch_norm_backend;
}
namespace cuda {
extern const BatchNormBackend batch_norm_backend;
}

}  // namespace pal_fast

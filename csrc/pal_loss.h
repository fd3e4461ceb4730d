// The fused loss, between the operators (pal_loss.cpp), which check arguments and allocate outputs, and the backends,
// which compute.
#pragma once

#include "problem.h"
#include "tensors.h"

namespace pal_fast {

// The layer's tensors [B, C, H, W], given where the attribution reads them: of one dtype, device and memory format.
struct LossLayer {
  const OptionalTensor& activation;
  const OptionalTensor& gradient;
  LossProblem problem;

  // Either of the two.
  [[nodiscard]] const Tensor& tensor() const { return activation ? *activation : *gradient; }
  [[nodiscard]] ScalarType dtype() const { return tensor().scalar_type(); }
};

// Other tensors are contiguous and of type T = computing_dtype(layer.dtype()) unless stated otherwise. Either a heatmap
// is given, or landmarks and perhaps visible and weights.
struct LossInputs {
  LossLayer layer;
  const OptionalTensor& heatmap;        // [B, H, W]
  const OptionalTensor& landmarks;      // [B, K, 2]
  const OptionalTensor& visible;        // [B, K] bool
  const OptionalTensor& weights;        // [B, K]
  const OptionalTensor& sample_weight;  // [B]
  HeatmapProblem heatmap_problem;       // of the landmarks; for a heatmap, only batch, height and width are set
  ScoreOptions options;
};

struct LossOutputs {
  Tensor loss;          // 0-dim, or [B] for Reduction::none
  Tensor plane;         // [B, H, W]
  Tensor coefficients;  // [B, G, 3]
  Tensor factor;        // [B]
};

// plane, coefficients and factor are outputs of the forward.
struct LossBackwardInputs {
  LossLayer layer;
  const Tensor& grad_loss;  // 0-dim or [B], of any stride
  const Tensor& plane;
  const Tensor& coefficients;
  const Tensor& factor;
};

// What a backend computes. The batch is not empty, and the backward has a gradient to compute.
struct LossBackend {
  void (*forward)(const LossInputs& inputs, const LossOutputs& outputs);
  // d_activation, d_gradient: as activation and gradient; 0 elements if not needed
  void (*backward)(const LossBackwardInputs& inputs, const Tensor& d_activation, const Tensor& d_gradient);
};

namespace cpu {
extern const LossBackend loss_backend;
}
namespace cuda {
extern const LossBackend loss_backend;
}

}  // namespace pal_fast

// The fused loss: what every backend of the operator shares.
#pragma once

#include <tuple>

#include "checks.h"
#include "problem.h"

namespace pal_fast {

// The inputs of pal_loss, all checked.
struct LossInputs {
  LossProblem problem;
  ScoreOptions options;
  // What draws the heatmap when landmarks are given; otherwise only batch, height and width are set.
  HeatmapProblem heatmap;
  ScalarType dtype;        // of activation and gradient
  ScalarType accumulator;  // T: of heatmap, landmarks, weights, sample_weight and all outputs
};

[[nodiscard]] LossInputs check_pal_loss(const OptionalTensor& activation, const OptionalTensor& gradient,
                                        const OptionalTensor& heatmap, const OptionalTensor& landmarks,
                                        const OptionalTensor& visible, const OptionalTensor& weights,
                                        const OptionalTensor& sample_weight, double image_height, double image_width,
                                        double sigma, int64_t combine, int64_t normalize, int64_t attribution,
                                        bool absolute, int64_t grouping, int64_t channel_count, int64_t score,
                                        int64_t scale, int64_t reduction);

[[nodiscard]] LossProblem check_pal_loss_backward(const Tensor& grad_loss, const OptionalTensor& activation,
                                                  const OptionalTensor& gradient, const Tensor& plane,
                                                  const Tensor& coefficients, const Tensor& factor, int64_t attribution,
                                                  bool absolute, int64_t grouping, int64_t channel_count,
                                                  bool need_activation, bool need_gradient);

struct LossOutputs {
  Tensor loss;          // 0-dim, or [B] for Reduction::none
  Tensor plane;         // [B, H, W]
  Tensor coefficients;  // [B, G, 3]
  Tensor factor;        // [B]
};

// Uninitialised outputs of type T on the device of `like`, the activation or the gradient.
[[nodiscard]] LossOutputs allocate_loss_outputs(const Tensor& like, const LossInputs& inputs);

// Uninitialised (d_activation, d_gradient) of the layer's dtype and memory format; not needed: 0 elements.
[[nodiscard]] std::tuple<Tensor, Tensor> allocate_layer_gradients(const OptionalTensor& activation,
                                                                  const OptionalTensor& gradient, bool need_activation,
                                                                  bool need_gradient);

// The one that is given (the activation if both are).
[[nodiscard]] const Tensor& layer_tensor(const OptionalTensor& activation, const OptionalTensor& gradient);

}  // namespace pal_fast

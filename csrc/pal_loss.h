// The fused loss: checks and allocation common to all backends.
#pragma once

#include <tuple>

#include "checks.h"
#include "problem.h"

namespace pal_fast {

// The checked arguments of pal_loss.
struct LossInputs {
  LossProblem problem;
  ScoreOptions options;
  // The heatmap of the landmarks; if a dense heatmap is given, only batch, height and width are set.
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

// Uninitialised (d_activation, d_gradient) of the layer's dtype and memory format; 0 elements if not needed.
[[nodiscard]] std::tuple<Tensor, Tensor> allocate_layer_gradients(const OptionalTensor& activation,
                                                                  const OptionalTensor& gradient, bool need_activation,
                                                                  bool need_gradient);

// The activation if given, otherwise the gradient.
[[nodiscard]] const Tensor& layer_tensor(const OptionalTensor& activation, const OptionalTensor& gradient);

}  // namespace pal_fast

// Landmarks to heatmap: what every backend of the operator shares.
#pragma once

#include <tuple>

#include "checks.h"
#include "problem.h"

namespace pal_fast {

// Checks the options and the three tensors of landmarks:
//   landmarks [B, K, 2] float32 or float64, visible [B, K] bool, weights [B, K] of landmarks' dtype; contiguous.
[[nodiscard]] HeatmapProblem check_landmark_heatmap(const Tensor& landmarks, const OptionalTensor& visible,
                                                    const OptionalTensor& weights, int64_t height, int64_t width,
                                                    double image_height, double image_width, double sigma,
                                                    int64_t combine, int64_t normalize);

// The same, and grad [B, H, W] of landmarks' dtype, contiguous.
[[nodiscard]] HeatmapProblem check_landmark_heatmap_backward(const Tensor& grad, const Tensor& landmarks,
                                                             const OptionalTensor& visible,
                                                             const OptionalTensor& weights, int64_t height,
                                                             int64_t width, double image_height, double image_width,
                                                             double sigma, int64_t combine, int64_t normalize);

// Uninitialised [B, H, W] of landmarks' dtype and device.
[[nodiscard]] Tensor allocate_heatmap(const Tensor& landmarks, const HeatmapProblem& problem);

// Uninitialised (d_landmarks [B, K, 2], d_weights [B, K]); what is not needed has 0 elements.
[[nodiscard]] std::tuple<Tensor, Tensor> allocate_heatmap_gradients(const Tensor& landmarks, bool need_landmarks,
                                                                    bool need_weights);

}  // namespace pal_fast

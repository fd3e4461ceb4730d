// Landmarks to heatmap: checks and allocation common to all backends.
#pragma once

#include <tuple>

#include "checks.h"
#include "problem.h"

namespace pal_fast {

// Checks the options and the tensors: landmarks [B, K, 2] float32 or float64, visible [B, K] bool, and weights [B, K]
// of the dtype of landmarks, all contiguous.
[[nodiscard]] HeatmapProblem check_landmark_heatmap(const Tensor& landmarks, const OptionalTensor& visible,
                                                    const OptionalTensor& weights, int64_t height, int64_t width,
                                                    double image_height, double image_width, double sigma,
                                                    int64_t combine, int64_t normalize);

// The same, and grad [B, H, W] of the dtype of landmarks, contiguous.
[[nodiscard]] HeatmapProblem check_landmark_heatmap_backward(const Tensor& grad, const Tensor& landmarks,
                                                             const OptionalTensor& visible,
                                                             const OptionalTensor& weights, int64_t height,
                                                             int64_t width, double image_height, double image_width,
                                                             double sigma, int64_t combine, int64_t normalize);

// Uninitialised [B, H, W] of the dtype and device of landmarks.
[[nodiscard]] Tensor allocate_heatmap(const Tensor& landmarks, const HeatmapProblem& problem);

// Uninitialised (d_landmarks [B, K, 2], d_weights [B, K]); 0 elements if not needed.
[[nodiscard]] std::tuple<Tensor, Tensor> allocate_heatmap_gradients(const Tensor& landmarks, bool need_landmarks,
                                                                    bool need_weights);

}  // namespace pal_fast

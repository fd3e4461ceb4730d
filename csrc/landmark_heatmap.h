// Landmarks to heatmap, between the operators (landmark_heatmap.cpp), which check arguments and allocate outputs, and
// the backends, which compute.
#pragma once

#include "problem.h"
#include "tensors.h"

namespace pal_fast {

struct HeatmapInputs {
  const Tensor& landmarks;        // [B, K, 2] float32 or float64
  const OptionalTensor& visible;  // [B, K] bool
  const OptionalTensor& weights;  // [B, K], like all others of the dtype of landmarks
  HeatmapProblem problem;
};

// Checks the tensors, which must be contiguous, and the options.
[[nodiscard]] HeatmapInputs check_landmark_heatmap(const Tensor& landmarks, const OptionalTensor& visible,
                                                   const OptionalTensor& weights, int64_t height, int64_t width,
                                                   double image_height, double image_width, double sigma,
                                                   int64_t combine, int64_t normalize);

// What a backend computes. The batch is not empty; the backward has a landmark and a gradient to compute.
struct HeatmapBackend {
  // heatmap: [B, H, W]
  void (*forward)(const HeatmapInputs& inputs, const Tensor& heatmap);
  // grad: [B, H, W]; d_landmarks: [B, K, 2]; d_weights: [B, K]; 0 elements if not needed
  void (*backward)(const Tensor& grad, const HeatmapInputs& inputs, const Tensor& d_landmarks, const Tensor& d_weights);
};

namespace cpu {
extern const HeatmapBackend heatmap_backend;
}
namespace cuda {
extern const HeatmapBackend heatmap_backend;
}

}  // namespace pal_fast

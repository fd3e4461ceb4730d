// Landmarks to heatmap: checks and allocation.
#include "landmark_heatmap.h"

#include <torch/csrc/stable/ops.h>

namespace pal_fast {

// Maximum height and width of a heatmap, so that its number of cells fits in 64 bits.
constexpr int64_t MAX_SIDE = int64_t{1} << 24;

HeatmapProblem check_landmark_heatmap(const Tensor& landmarks, const OptionalTensor& visible,
                                      const OptionalTensor& weights, int64_t height, int64_t width, double image_height,
                                      double image_width, double sigma, int64_t combine, int64_t normalize) {
  check_dimensions(landmarks, "landmarks", 3, "[B, K, 2]");
  const int64_t batch = landmarks.size(0);
  const int64_t count = landmarks.size(1);
  check_shape(landmarks, "landmarks", {batch, count, 2});
  check_dtype_in(landmarks, "landmarks", {ScalarType::Float, ScalarType::Double});
  check_contiguous(landmarks, "landmarks");
  if (visible) {
    check_shape(*visible, "visible", {batch, count});
    check_dtype(*visible, "visible", ScalarType::Bool);
    check_contiguous(*visible, "visible");
    check_same_device(*visible, "visible", landmarks, "landmarks");
  }
  if (weights) {
    check_shape(*weights, "weights", {batch, count});
    check_dtype(*weights, "weights", landmarks.scalar_type());
    check_contiguous(*weights, "weights");
    check_same_device(*weights, "weights", landmarks, "landmarks");
  }
  STD_TORCH_CHECK(height >= 1 && width >= 1 && height <= MAX_SIDE && width <= MAX_SIDE,
                  "height and width of the heatmap must lie between 1 and ", MAX_SIDE, ", got ", height, " x ", width);
  check_positive(image_height, "image_height");
  check_positive(image_width, "image_width");
  check_positive(sigma, "sigma");
  return {batch,
          count,
          height,
          width,
          image_height,
          image_width,
          sigma,
          check_choice<Combine>(combine, "combine"),
          check_choice<Normalize>(normalize, "normalize")};
}

HeatmapProblem check_landmark_heatmap_backward(const Tensor& grad, const Tensor& landmarks,
                                               const OptionalTensor& visible, const OptionalTensor& weights,
                                               int64_t height, int64_t width, double image_height, double image_width,
                                               double sigma, int64_t combine, int64_t normalize) {
  const HeatmapProblem problem = check_landmark_heatmap(landmarks, visible, weights, height, width, image_height,
                                                        image_width, sigma, combine, normalize);
  check_shape(grad, "grad", {problem.batch, height, width});
  check_dtype(grad, "grad", landmarks.scalar_type());
  check_contiguous(grad, "grad");
  check_same_device(grad, "grad", landmarks, "landmarks");
  return problem;
}

Tensor allocate_heatmap(const Tensor& landmarks, const HeatmapProblem& problem) {
  return torch::stable::new_empty(landmarks, {problem.batch, problem.height, problem.width});
}

std::tuple<Tensor, Tensor> allocate_heatmap_gradients(const Tensor& landmarks, bool need_landmarks, bool need_weights) {
  const int64_t batch = landmarks.size(0);
  const int64_t count = landmarks.size(1);
  return {
      need_landmarks ? torch::stable::new_empty(landmarks, {batch, count, 2})
                     : torch::stable::new_empty(landmarks, {0}),
      need_weights ? torch::stable::new_empty(landmarks, {batch, count}) : torch::stable::new_empty(landmarks, {0})};
}

}  // namespace pal_fast

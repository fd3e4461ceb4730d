// Landmarks to heatmap: schemas, checks and allocation.
#include "landmark_heatmap.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "checks.h"

namespace pal_fast {

// Maximum height and width of a heatmap, so that its number of cells fits in 64 bits.
constexpr int64_t MAX_SIDE = int64_t{1} << 24;

HeatmapInputs check_landmark_heatmap(const Tensor& landmarks, const OptionalTensor& visible,
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
  return {landmarks,
          visible,
          weights,
          {batch, count, height, width, image_height, image_width, sigma, check_choice<Combine>(combine, "combine"),
           check_choice<Normalize>(normalize, "normalize")}};
}

namespace {

template <const HeatmapBackend& Backend>
Tensor landmark_heatmap(const Tensor& landmarks, const OptionalTensor& visible, const OptionalTensor& weights,
                        int64_t height, int64_t width, double image_height, double image_width, double sigma,
                        int64_t combine, int64_t normalize) {
  const HeatmapInputs inputs = check_landmark_heatmap(landmarks, visible, weights, height, width, image_height,
                                                      image_width, sigma, combine, normalize);
  const int64_t batch = inputs.problem.batch;
  const Tensor heatmap = torch::stable::new_empty(landmarks, {batch, height, width});
  if (batch > 0) {
    Backend.forward(inputs, heatmap);
  }
  return heatmap;
}

template <const HeatmapBackend& Backend>
std::tuple<Tensor, Tensor> landmark_heatmap_backward(const Tensor& grad, const Tensor& landmarks,
                                                     const OptionalTensor& visible, const OptionalTensor& weights,
                                                     int64_t height, int64_t width, double image_height,
                                                     double image_width, double sigma, int64_t combine,
                                                     int64_t normalize, bool need_landmarks, bool need_weights) {
  const HeatmapInputs inputs = check_landmark_heatmap(landmarks, visible, weights, height, width, image_height,
                                                      image_width, sigma, combine, normalize);
  const int64_t batch = inputs.problem.batch, count = inputs.problem.landmarks;
  check_shape(grad, "grad", {batch, height, width});
  check_dtype(grad, "grad", landmarks.scalar_type());
  check_contiguous(grad, "grad");
  check_same_device(grad, "grad", landmarks, "landmarks");

  const auto allocate = [&](bool needed, const std::vector<int64_t>& shape) {
    return needed ? torch::stable::new_empty(landmarks, shape) : torch::stable::new_empty(landmarks, {0});
  };
  const Tensor d_landmarks = allocate(need_landmarks, {batch, count, 2});
  const Tensor d_weights = allocate(need_weights, {batch, count});
  if (batch * count > 0 && (need_landmarks || need_weights)) {
    Backend.backward(grad, inputs, d_landmarks, d_weights);
  }
  return {d_landmarks, d_weights};
}

template <const HeatmapBackend& Backend>
void implement(auto& library) {
  library.impl("landmark_heatmap", TORCH_BOX(&landmark_heatmap<Backend>));
  library.impl("landmark_heatmap_backward", TORCH_BOX(&landmark_heatmap_backward<Backend>));
}

}  // namespace
}  // namespace pal_fast

STABLE_TORCH_LIBRARY_FRAGMENT(pal_fast, library) {
  library.def(
      "landmark_heatmap(Tensor landmarks, Tensor? visible, Tensor? weights, int height, int width, "
      "float image_height, float image_width, float sigma, int combine, int normalize) -> Tensor");
  library.def(
      "landmark_heatmap_backward(Tensor grad, Tensor landmarks, Tensor? visible, Tensor? weights, "
      "int height, int width, float image_height, float image_width, float sigma, int combine, int normalize, "
      "bool need_landmarks, bool need_weights) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pal_fast, CPU, library) { pal_fast::implement<pal_fast::cpu::heatmap_backend>(library); }
#ifdef PAL_FAST_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(pal_fast, CUDA, library) { pal_fast::implement<pal_fast::cuda::heatmap_backend>(library); }
#endif

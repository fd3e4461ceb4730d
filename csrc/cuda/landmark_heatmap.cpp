// Landmarks to heatmap on the GPU: outputs, workspace and stream for the launches of landmark_heatmap.cu.
#include "../landmark_heatmap.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>

#include "device.h"
#include "landmark_heatmap_pass.h"

namespace pal_fast::cuda {
namespace {

HeatmapPass pass_of(const HeatmapProblem& problem, const Tensor& landmarks, const OptionalTensor& visible,
                    const OptionalTensor& weights) {
  STD_TORCH_CHECK(problem.cells() <= std::numeric_limits<int32_t>::max(), "a heatmap of ", problem.height, " x ",
                  problem.width, " cells is too large for the CUDA kernels");
  HeatmapPass pass;
  pass.problem = problem;
  pass.storage = storage_of(landmarks.scalar_type());
  pass.landmarks = read(landmarks);
  pass.visible = read(visible);
  pass.weights = read(weights);
  return pass;
}

Tensor landmark_heatmap(const Tensor& landmarks, const OptionalTensor& visible, const OptionalTensor& weights,
                        int64_t height, int64_t width, double image_height, double image_width, double sigma,
                        int64_t combine, int64_t normalize) {
  const HeatmapProblem problem = check_landmark_heatmap(landmarks, visible, weights, height, width, image_height,
                                                        image_width, sigma, combine, normalize);
  const OnDevice current(landmarks.get_device_index());
  const Tensor heatmap = allocate_heatmap(landmarks, problem);
  if (problem.batch == 0) {
    return heatmap;
  }
  HeatmapPass pass = pass_of(problem, landmarks, visible, weights);
  pass.heatmap = written(heatmap);
  const int32_t device = landmarks.get_device_index();
  void* stream = current_stream(device);
  pass.tiles = plan_heatmap_tiles(problem, pass.storage, {processors_of(device), has_warpgroup_products(device)});
  Tickets counts;
  OptionalTensor divisors;
  if (heatmap_divides_tiles(problem, pass.storage, pass.tiles)) {
    counts = tickets(landmarks, problem.batch, stream);
    divisors = torch::stable::new_empty(landmarks, {problem.batch, pass.tiles.count()}, ScalarType::Double);
    pass.tickets = counts.counts;
    pass.divisors = written(divisors);
  }
  pass.tiles.warpgroups ? launch_landmark_heatmap_by_warpgroups(pass, stream) : launch_landmark_heatmap(pass, stream);
  return heatmap;
}

std::tuple<Tensor, Tensor> landmark_heatmap_backward(const Tensor& grad, const Tensor& landmarks,
                                                     const OptionalTensor& visible, const OptionalTensor& weights,
                                                     int64_t height, int64_t width, double image_height,
                                                     double image_width, double sigma, int64_t combine,
                                                     int64_t normalize, bool need_landmarks, bool need_weights) {
  const HeatmapProblem problem = check_landmark_heatmap_backward(grad, landmarks, visible, weights, height, width,
                                                                 image_height, image_width, sigma, combine, normalize);
  const OnDevice current(landmarks.get_device_index());
  const auto gradients = allocate_heatmap_gradients(landmarks, need_landmarks, need_weights);
  if (problem.batch * problem.landmarks == 0 || !(need_landmarks || need_weights)) {
    return gradients;
  }
  HeatmapPass pass = pass_of(problem, landmarks, visible, weights);
  pass.grad = read(grad);
  pass.d_landmarks = written(std::get<0>(gradients));
  pass.d_weights = written(std::get<1>(gradients));
  OptionalTensor raw, winner;
  if (heatmap_needs_raw(problem)) {
    raw = torch::stable::empty_like(grad);
    pass.raw = written(raw);
  }
  if (problem.combine == Combine::max) {
    winner = torch::stable::new_empty(grad, {problem.batch, height, width}, ScalarType::Int);
    pass.winner = written(winner);
  }
  launch_landmark_heatmap_backward(pass, current_stream(landmarks.get_device_index()));
  return gradients;
}

}  // namespace
}  // namespace pal_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(pal_fast, CUDA, library) {
  library.impl("landmark_heatmap", TORCH_BOX(&pal_fast::cuda::landmark_heatmap));
  library.impl("landmark_heatmap_backward", TORCH_BOX(&pal_fast::cuda::landmark_heatmap_backward));
}

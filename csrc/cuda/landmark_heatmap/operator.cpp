// Landmarks to heatmap on the GPU: the operators, which check, allocate and launch.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>

#include "cuda/device.h"
#include "cuda/landmark_heatmap/params.h"
#include "landmark_heatmap.h"

namespace pal_fast::cuda {
namespace {

HeatmapParams params_of(const HeatmapProblem& problem, const Tensor& landmarks, const OptionalTensor& visible,
                        const OptionalTensor& weights) {
  STD_TORCH_CHECK(problem.cells() <= std::numeric_limits<int32_t>::max(), "a heatmap of ", problem.height, " x ",
                  problem.width, " cells is too large for the CUDA kernels");
  HeatmapParams params;
  params.problem = problem;
  params.storage = storage_of(landmarks.scalar_type());
  params.landmarks = data_or_null(landmarks);
  params.visible = data_or_null(visible);
  params.weights = data_or_null(weights);
  return params;
}

Tensor landmark_heatmap(const Tensor& landmarks, const OptionalTensor& visible, const OptionalTensor& weights,
                        int64_t height, int64_t width, double image_height, double image_width, double sigma,
                        int64_t combine, int64_t normalize) {
  const HeatmapProblem problem = check_landmark_heatmap(landmarks, visible, weights, height, width, image_height,
                                                        image_width, sigma, combine, normalize);
  const CudaDeviceGuard current(landmarks.get_device_index());
  const Tensor heatmap = allocate_heatmap(landmarks, problem);
  if (problem.batch == 0) {
    return heatmap;
  }
  HeatmapParams params = params_of(problem, landmarks, visible, weights);
  params.heatmap = mutable_data_or_null(heatmap);
  const int32_t device = landmarks.get_device_index();
  void* stream = current_stream(device);
  params.tiles = plan_heatmap_tiles(problem, params.storage, {multiprocessor_count(device), supports_wgmma(device)});
  Tickets arrivals;
  OptionalTensor divisors;
  if (heatmap_needs_divisors(problem, params.storage, params.tiles)) {
    arrivals = tickets(landmarks, problem.batch, stream);
    divisors = torch::stable::new_empty(landmarks, {problem.batch, params.tiles.count()}, ScalarType::Double);
    params.tickets = arrivals.counts;
    params.divisors = mutable_data_or_null(divisors);
  }
  params.tiles.uses_wgmma ? launch_landmark_heatmap_wgmma(params, stream) : launch_landmark_heatmap(params, stream);
  return heatmap;
}

std::tuple<Tensor, Tensor> landmark_heatmap_backward(const Tensor& grad, const Tensor& landmarks,
                                                     const OptionalTensor& visible, const OptionalTensor& weights,
                                                     int64_t height, int64_t width, double image_height,
                                                     double image_width, double sigma, int64_t combine,
                                                     int64_t normalize, bool need_landmarks, bool need_weights) {
  const HeatmapProblem problem = check_landmark_heatmap_backward(grad, landmarks, visible, weights, height, width,
                                                                 image_height, image_width, sigma, combine, normalize);
  const CudaDeviceGuard current(landmarks.get_device_index());
  const auto gradients = allocate_heatmap_gradients(landmarks, need_landmarks, need_weights);
  if (problem.batch * problem.landmarks == 0 || !(need_landmarks || need_weights)) {
    return gradients;
  }
  HeatmapParams params = params_of(problem, landmarks, visible, weights);
  params.grad = data_or_null(grad);
  params.d_landmarks = mutable_data_or_null(std::get<0>(gradients));
  params.d_weights = mutable_data_or_null(std::get<1>(gradients));
  OptionalTensor raw, winner;
  if (heatmap_needs_raw(problem)) {
    raw = torch::stable::empty_like(grad);
    params.raw = mutable_data_or_null(raw);
  }
  if (problem.combine == Combine::max) {
    winner = torch::stable::new_empty(grad, {problem.batch, height, width}, ScalarType::Int);
    params.winner = mutable_data_or_null(winner);
  }
  launch_landmark_heatmap_backward(params, current_stream(landmarks.get_device_index()));
  return gradients;
}

}  // namespace
}  // namespace pal_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(pal_fast, CUDA, library) {
  library.impl("landmark_heatmap", TORCH_BOX(&pal_fast::cuda::landmark_heatmap));
  library.impl("landmark_heatmap_backward", TORCH_BOX(&pal_fast::cuda::landmark_heatmap_backward));
}

// Landmarks to heatmap on the GPU: workspace, parameters and launch of each operator.
#include <torch/csrc/stable/ops.h>

#include "cuda/device.h"
#include "cuda/landmark_heatmap/params.h"
#include "landmark_heatmap.h"

namespace pal_fast::cuda {
namespace {

HeatmapParams params_of(const HeatmapInputs& inputs) {
  const HeatmapProblem& problem = inputs.problem;
  check_count(problem.cells(), "a heatmap of ", problem.height, " x ", problem.width, " cells");
  HeatmapParams params;
  params.problem = problem;
  params.storage = storage_of(inputs.landmarks.scalar_type());
  params.landmarks = data_or_null(inputs.landmarks);
  params.visible = data_or_null(inputs.visible);
  params.weights = data_or_null(inputs.weights);
  return params;
}

void landmark_heatmap(const HeatmapInputs& inputs, const Tensor& heatmap) {
  const HeatmapProblem& problem = inputs.problem;
  HeatmapParams params = params_of(inputs);
  params.heatmap = mutable_data_or_null(heatmap);
  const int32_t device = heatmap.get_device_index();
  const CudaDeviceGuard current(device);
  void* stream = current_stream(device);
  params.tiles = plan_heatmap_tiles(problem, params.storage, {multiprocessor_count(device), supports_wgmma(device)});
  Tickets arrivals;
  OptionalTensor divisors;
  if (heatmap_needs_divisors(problem, params.storage, params.tiles)) {
    arrivals = tickets(heatmap, problem.batch, stream);
    divisors = torch::stable::new_empty(heatmap, {problem.batch, params.tiles.count()}, ScalarType::Double);
    params.tickets = arrivals.counts;
    params.divisors = mutable_data_or_null(divisors);
  }
  params.tiles.uses_wgmma ? launch_landmark_heatmap_wgmma(params, stream) : launch_landmark_heatmap(params, stream);
}

void landmark_heatmap_backward(const Tensor& grad, const HeatmapInputs& inputs, const Tensor& d_landmarks,
                               const Tensor& d_weights) {
  const HeatmapProblem& problem = inputs.problem;
  HeatmapParams params = params_of(inputs);
  params.grad = data_or_null(grad);
  params.d_landmarks = mutable_data_or_null(d_landmarks);
  params.d_weights = mutable_data_or_null(d_weights);
  const int32_t device = grad.get_device_index();
  const CudaDeviceGuard current(device);
  OptionalTensor raw, winner;
  if (heatmap_needs_raw(problem)) {
    raw = torch::stable::empty_like(grad);
    params.raw = mutable_data_or_null(raw);
  }
  if (problem.combine == Combine::max) {
    winner = torch::stable::new_empty(grad, {problem.batch, problem.height, problem.width}, ScalarType::Int);
    params.winner = mutable_data_or_null(winner);
  }
  launch_landmark_heatmap_backward(params, current_stream(device));
}

}  // namespace

const HeatmapBackend heatmap_backend = {&landmark_heatmap, &landmark_heatmap_backward};

}  // namespace pal_fast::cuda

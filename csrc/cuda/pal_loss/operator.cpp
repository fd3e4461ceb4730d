// The loss on the GPU: workspace, parameters and launch of each operator.
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cuda/device.h"
#include "cuda/pal_loss/params.h"
#include "cuda/pal_loss/plan.h"
#include "pal_loss.h"

namespace pal_fast::cuda {
namespace {

void check_counts(const LossProblem& problem) {
  check_count(std::max(problem.cells(), problem.channels), "a layer of ", problem.channels, " channels of ",
              problem.height, " x ", problem.width, " cells");
}

// Nothing for 0 elements: an allocation costs the host some 1.5 us.
[[nodiscard]] OptionalTensor workspace(const Tensor& like, int64_t count, ScalarType dtype) {
  return count == 0 ? OptionalTensor() : torch::stable::new_empty(like, {count}, dtype);
}

void pal_loss(const LossInputs& inputs, const LossOutputs& outputs) {
  const LossProblem& problem = inputs.layer.problem;
  check_counts(problem);
  const Tensor& layer = inputs.layer.tensor();
  const int32_t device = layer.get_device_index();
  const CudaDeviceGuard current(device);
  const int multiprocessors = multiprocessor_count(device);
  void* stream = current_stream(device);
  LossParams params;
  params.problem = problem;
  params.options = inputs.options;
  params.heatmap = inputs.heatmap_problem;
  params.storage = storage_of(inputs.layer.dtype());
  params.activation = data_or_null(inputs.layer.activation);
  params.gradient = data_or_null(inputs.layer.gradient);
  params.dense = data_or_null(inputs.heatmap);
  params.landmarks = data_or_null(inputs.landmarks);
  params.visible = data_or_null(inputs.visible);
  params.weights = data_or_null(inputs.weights);
  params.sample_weight = data_or_null(inputs.sample_weight);
  params.loss = mutable_data_or_null(outputs.loss);
  params.plane = mutable_data_or_null(outputs.plane);
  params.coefficients = mutable_data_or_null(outputs.coefficients);
  params.factor = mutable_data_or_null(outputs.factor);
  const LossWorkspace sizes = loss_workspace(problem, params.storage, multiprocessors);
  const OptionalTensor partial_maps = workspace(layer, sizes.partial_maps, computing_dtype(inputs.layer.dtype()));
  const bool reduces = inputs.options.reduction != Reduction::none;
  const int64_t scores = reduces ? 2 * problem.batch : 0;
  const OptionalTensor partial_sums =
      workspace(layer, sizes.partial_sums + scores, ScalarType::Double);  // the scores come after them
  const Tickets arrivals = tickets(layer, problem.batch + 1, stream);
  params.partial_maps = mutable_data_or_null(partial_maps);
  params.partial_sums = mutable_data_or_null(partial_sums);
  params.scores = reduces ? static_cast<double*>(params.partial_sums) + sizes.partial_sums : nullptr;
  params.tickets = arrivals.counts;
  problem.grouping == Grouping::each ? launch_each_forward(params, multiprocessors, stream)
                                     : launch_map_forward(params, multiprocessors, stream);
}

void pal_loss_backward(const LossBackwardInputs& inputs, const Tensor& d_activation, const Tensor& d_gradient) {
  const auto& [layer, grad_loss, plane, coefficients, factor] = inputs;
  check_counts(layer.problem);
  const int32_t device = layer.tensor().get_device_index();
  const CudaDeviceGuard current(device);
  LossBackwardParams params;
  params.problem = layer.problem;
  params.storage = storage_of(layer.dtype());
  params.grad_loss = data_or_null(grad_loss);
  params.grad_loss_stride = grad_loss.dim() == 0 ? 0 : grad_loss.stride(0);
  params.plane = data_or_null(plane);
  params.coefficients = data_or_null(coefficients);
  params.factor = data_or_null(factor);
  params.d_activation = mutable_data_or_null(d_activation);
  params.d_gradient = mutable_data_or_null(d_gradient);
  params.activation = backward_reads_activation(params) ? data_or_null(layer.activation) : nullptr;
  params.gradient = backward_reads_gradient(params) ? data_or_null(layer.gradient) : nullptr;
  launch_pal_loss_backward(params, multiprocessor_count(device), current_stream(device));
}

}  // namespace

const LossBackend loss_backend = {&pal_loss, &pal_loss_backward};

}  // namespace pal_fast::cuda

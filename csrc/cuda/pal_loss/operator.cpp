// The loss on the GPU: the operators, which check, allocate and launch.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>

#include "cuda/device.h"
#include "cuda/pal_loss/params.h"
#include "cuda/pal_loss/plan.h"
#include "pal_loss.h"

namespace pal_fast::cuda {
namespace {

// Kernels index cells and channels by 32 bits, and elements of tensors by 64.
void check_counts(const LossProblem& problem) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max() / 2;
  STD_TORCH_CHECK(problem.cells() <= most && problem.channels <= most, "a layer of ", problem.channels, " channels of ",
                  problem.height, " x ", problem.width, " cells is too large for the CUDA kernels");
}

// Nothing for 0 elements: an allocation costs the host some 1.5 us.
[[nodiscard]] OptionalTensor workspace(const Tensor& like, int64_t count, ScalarType dtype) {
  return count == 0 ? OptionalTensor() : torch::stable::new_empty(like, {count}, dtype);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pal_loss(const OptionalTensor& activation, const OptionalTensor& gradient,
                                                    const OptionalTensor& heatmap, const OptionalTensor& landmarks,
                                                    const OptionalTensor& visible, const OptionalTensor& weights,
                                                    const OptionalTensor& sample_weight, double image_height,
                                                    double image_width, double sigma, int64_t combine,
                                                    int64_t normalize, int64_t attribution, bool absolute,
                                                    int64_t grouping, int64_t channel_count, int64_t score,
                                                    int64_t scale, int64_t reduction) {
  const LossInputs inputs = check_pal_loss(activation, gradient, heatmap, landmarks, visible, weights, sample_weight,
                                           image_height, image_width, sigma, combine, normalize, attribution, absolute,
                                           grouping, channel_count, score, scale, reduction);
  const LossProblem& problem = inputs.problem;
  check_counts(problem);
  const Tensor& layer = layer_tensor(activation, gradient);
  const int32_t device = layer.get_device_index();
  const CudaDeviceGuard current(device);
  LossOutputs outputs = allocate_loss_outputs(layer, inputs);
  if (problem.batch == 0) {
    torch::stable::zero_(outputs.loss);
    return {outputs.loss, outputs.plane, outputs.coefficients, outputs.factor};
  }

  const int multiprocessors = multiprocessor_count(device);
  void* stream = current_stream(device);
  LossParams params;
  params.problem = problem;
  params.options = inputs.options;
  params.heatmap = inputs.heatmap;
  params.storage = storage_of(inputs.dtype);
  params.activation = data_or_null(activation);
  params.gradient = data_or_null(gradient);
  params.dense = data_or_null(heatmap);
  params.landmarks = data_or_null(landmarks);
  params.visible = data_or_null(visible);
  params.weights = data_or_null(weights);
  params.sample_weight = data_or_null(sample_weight);
  params.loss = mutable_data_or_null(outputs.loss);
  params.plane = mutable_data_or_null(outputs.plane);
  params.coefficients = mutable_data_or_null(outputs.coefficients);
  params.factor = mutable_data_or_null(outputs.factor);
  const LossWorkspace sizes = loss_workspace(problem, params.storage, multiprocessors);
  const OptionalTensor partial_maps = workspace(layer, sizes.partial_maps, inputs.accumulator);
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
  return {outputs.loss, outputs.plane, outputs.coefficients, outputs.factor};
}

std::tuple<Tensor, Tensor> pal_loss_backward(const Tensor& grad_loss, const OptionalTensor& activation,
                                             const OptionalTensor& gradient, const Tensor& plane,
                                             const Tensor& coefficients, const Tensor& factor, int64_t attribution,
                                             bool absolute, int64_t grouping, int64_t channel_count,
                                             bool need_activation, bool need_gradient) {
  const LossProblem problem =
      check_pal_loss_backward(grad_loss, activation, gradient, plane, coefficients, factor, attribution, absolute,
                              grouping, channel_count, need_activation, need_gradient);
  check_counts(problem);
  const Tensor& layer = layer_tensor(activation, gradient);
  const int32_t device = layer.get_device_index();
  const CudaDeviceGuard current(device);
  const auto gradients = allocate_layer_gradients(activation, gradient, need_activation, need_gradient);
  if (problem.batch == 0 || !(need_activation || need_gradient)) {
    return gradients;
  }
  LossBackwardParams params;
  params.problem = problem;
  params.storage = storage_of(layer.scalar_type());
  params.grad_loss = data_or_null(grad_loss);
  params.grad_loss_stride = grad_loss.dim() == 0 ? 0 : grad_loss.stride(0);
  params.plane = data_or_null(plane);
  params.coefficients = data_or_null(coefficients);
  params.factor = data_or_null(factor);
  params.d_activation = mutable_data_or_null(std::get<0>(gradients));
  params.d_gradient = mutable_data_or_null(std::get<1>(gradients));
  params.activation = backward_reads_activation(params) ? data_or_null(activation) : nullptr;
  params.gradient = backward_reads_gradient(params) ? data_or_null(gradient) : nullptr;
  launch_pal_loss_backward(params, multiprocessor_count(device), current_stream(device));
  return gradients;
}

}  // namespace
}  // namespace pal_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(pal_fast, CUDA, library) {
  library.impl("pal_loss", TORCH_BOX(&pal_fast::cuda::pal_loss));
  library.impl("pal_loss_backward", TORCH_BOX(&pal_fast::cuda::pal_loss_backward));
}

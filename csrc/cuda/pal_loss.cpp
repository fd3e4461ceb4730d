// The loss on the GPU: outputs, workspace and stream for the launches of pal_loss_*.cu.
#include "../pal_loss.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>

#include "device.h"
#include "pal_loss_pass.h"
#include "pal_loss_plan.h"

namespace pal_fast::cuda {
namespace {

// What kernels count in 32 bits; offsets into tensors have 64.
void check_counts(const LossProblem& problem) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max() / 2;
  STD_TORCH_CHECK(problem.cells() <= most && problem.channels <= most, "a layer of ", problem.channels, " channels of ",
                  problem.height, " x ", problem.width, " cells is too large for the CUDA kernels");
}

// None of no elements: an allocation costs the host some 1.5 us.
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
  const OnDevice current(device);
  LossOutputs outputs = allocate_loss_outputs(layer, inputs);
  if (problem.batch == 0) {
    torch::stable::zero_(outputs.loss);
    return {outputs.loss, outputs.plane, outputs.coefficients, outputs.factor};
  }

  const int processors = processors_of(device);
  void* stream = current_stream(device);
  LossPass pass;
  pass.problem = problem;
  pass.options = inputs.options;
  pass.heatmap = inputs.heatmap;
  pass.storage = storage_of(inputs.dtype);
  pass.activation = read(activation);
  pass.gradient = read(gradient);
  pass.dense = read(heatmap);
  pass.landmarks = read(landmarks);
  pass.visible = read(visible);
  pass.weights = read(weights);
  pass.sample_weight = read(sample_weight);
  pass.loss = written(outputs.loss);
  pass.plane = written(outputs.plane);
  pass.coefficients = written(outputs.coefficients);
  pass.factor = written(outputs.factor);
  const LossWorkspace sizes = loss_workspace(problem, pass.storage, processors);
  const OptionalTensor shares = workspace(layer, sizes.shares, inputs.accumulator);
  const bool reduces = inputs.options.reduction != Reduction::none;
  const int64_t scores = reduces ? 2 * problem.batch : 0;
  const OptionalTensor totals = workspace(layer, sizes.totals + scores, ScalarType::Double);  // and the scores
  const Tickets counts = tickets(layer, problem.batch + 1, stream);
  pass.shares = written(shares);
  pass.totals = written(totals);
  pass.scores = reduces ? static_cast<double*>(pass.totals) + sizes.totals : nullptr;
  pass.tickets = counts.counts;
  problem.grouping == Grouping::each ? launch_each_forward(pass, processors, stream)
                                     : launch_map_forward(pass, processors, stream);
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
  const OnDevice current(device);
  const auto gradients = allocate_layer_gradients(activation, gradient, need_activation, need_gradient);
  if (problem.batch == 0 || !(need_activation || need_gradient)) {
    return gradients;
  }
  LossBackwardPass pass;
  pass.problem = problem;
  pass.storage = storage_of(layer.scalar_type());
  pass.grad_loss = read(grad_loss);
  pass.grad_loss_stride = grad_loss.dim() == 0 ? 0 : grad_loss.stride(0);
  pass.plane = read(plane);
  pass.coefficients = read(coefficients);
  pass.factor = read(factor);
  pass.d_activation = written(std::get<0>(gradients));
  pass.d_gradient = written(std::get<1>(gradients));
  pass.activation = backward_reads_activation(pass) ? read(activation) : nullptr;
  pass.gradient = backward_reads_gradient(pass) ? read(gradient) : nullptr;
  launch_pal_loss_backward(pass, processors_of(device), current_stream(device));
  return gradients;
}

}  // namespace
}  // namespace pal_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(pal_fast, CUDA, library) {
  library.impl("pal_loss", TORCH_BOX(&pal_fast::cuda::pal_loss));
  library.impl("pal_loss_backward", TORCH_BOX(&pal_fast::cuda::pal_loss_backward));
}

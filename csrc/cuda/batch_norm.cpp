// Batch normalisation on the GPU: outputs, workspace and stream for the launches of batch_norm.cu.
#include "../batch_norm.h"

#include <torch/csrc/stable/library.h>

#include <utility>

#include "batch_norm_pass.h"
#include "device.h"

namespace pal_fast::cuda {
namespace {

// One launch in the making: the checked problem, its plan, and what all operators hand over alike.
class Launch {
 public:
  Launch(BatchNormTensors tensors, bool training, bool relu)
      : tensors_(std::move(tensors)), current_(tensors_.input.get_device_index()) {
    const int32_t device = tensors_.input.get_device_index();
    pass.problem = check_batch_norm(tensors_, training, relu);
    pass.storage = storage_of(tensors_.input.scalar_type());
    pass.input = tensors_.input.const_data_ptr();
    pass.grad = read(tensors_.grad);
    pass.grad_grad = read(tensors_.grad_grad);
    pass.weight = read(tensors_.weight);
    pass.bias = read(tensors_.bias);
    pass.sums = read(tensors_.sums);
    pass.grad_sums = read(tensors_.grad_sums);
    pass.statistics = written(tensors_.statistics);
    pass.running_mean = written(tensors_.running_mean);
    pass.running_variance = written(tensors_.running_variance);
    // What is written is fresh, and aligned.
    const bool all_aligned = aligned(pass.input) && aligned(pass.grad) && aligned(pass.grad_grad);
    pass.plan = plan_batch_norm(pass.problem, pass.storage, all_aligned, processors_of(device));
    stream = current_stream(device);
  }

  // Where tiles are split among blocks: room for what these leave for each other.
  void allocate_partial() {
    if (pass.plan.splits() > 1) {
      partial_ = allocate_per_channel(tensors_.input, batch_norm_partial_rows(pass.plan));
      tickets_ = tickets(tensors_.input, pass.plan.tiles, stream);
      pass.partial = partial_->mutable_data_ptr();
      pass.tickets = tickets_.counts;
    }
  }

  BatchNormPass pass;
  void* stream = nullptr;

 private:
  BatchNormTensors tensors_;  // what `pass` points to, copies in another memory format included
  OnDevice current_;
  OptionalTensor partial_;
  Tickets tickets_;
};

Tensor batch_norm_statistics(const Tensor& input, const OptionalTensor& running_mean,
                             const OptionalTensor& running_variance, bool training, double momentum, double eps) {
  const BatchNormTensors tensors{.input = input, .running_mean = running_mean, .running_variance = running_variance};
  Launch launch(tensors, training, false);
  check_running(tensors, training);
  const Tensor statistics = allocate_per_channel(input, 2);
  launch.pass.statistics = statistics.mutable_data_ptr();
  launch.pass.momentum = momentum;
  launch.pass.eps = eps;
  launch.allocate_partial();
  launch_batch_norm_statistics(launch.pass, launch.stream);
  return statistics;
}

Tensor batch_norm(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                  const Tensor& statistics, bool training, bool relu) {
  Launch launch({.input = input, .weight = weight, .bias = bias, .statistics = statistics}, training, relu);
  const Tensor output = allocate_like_input(input, true);
  launch.pass.output = written(output);
  launch_batch_norm_forward(launch.pass, launch.stream);
  return output;
}

std::tuple<Tensor, Tensor> batch_norm_backward(const Tensor& grad, const Tensor& input, const OptionalTensor& weight,
                                               const OptionalTensor& bias, const Tensor& statistics, bool training,
                                               bool relu, bool need_input, bool need_sums) {
  Launch launch(
      {.input = input, .grad = in_format_of(input, grad), .weight = weight, .bias = bias, .statistics = statistics},
      training, relu);
  const Tensor grad_input = allocate_like_input(input, need_input);
  const Tensor sums = training || need_sums ? allocate_per_channel(input, 2) : allocate_like_input(input, false);
  launch.pass.output = written(grad_input);
  launch.pass.channel_output = written(sums);
  launch.allocate_partial();
  launch_batch_norm_backward(launch.pass, launch.stream);
  return {grad_input, sums};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_double_backward(const OptionalTensor& grad_grad_input,
                                                              const OptionalTensor& grad_sums, const Tensor& grad,
                                                              const Tensor& input, const OptionalTensor& weight,
                                                              const OptionalTensor& bias, const Tensor& statistics,
                                                              const Tensor& sums, bool training, bool relu,
                                                              bool need_input) {
  Launch launch({.input = input,
                 .grad = in_format_of(input, grad),
                 .grad_grad = in_format_of(input, grad_grad_input),
                 .weight = weight,
                 .bias = bias,
                 .statistics = statistics,
                 .sums = sums,
                 .grad_sums = grad_sums},
                training, relu);
  const Tensor grad_grad = allocate_like_input(input, true);
  const Tensor grad_input = allocate_like_input(input, need_input);
  const Tensor grad_weight = allocate_per_channel(input, 0);
  launch.pass.output = written(grad_grad);
  launch.pass.second_output = written(grad_input);
  launch.pass.channel_output = written(grad_weight);
  launch.allocate_partial();
  launch_batch_norm_double_backward(launch.pass, launch.stream);
  return {grad_grad, grad_input, grad_weight};
}

}  // namespace
}  // namespace pal_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(pal_fast, CUDA, library) {
  library.impl("batch_norm_statistics", TORCH_BOX(&pal_fast::cuda::batch_norm_statistics));
  library.impl("batch_norm", TORCH_BOX(&pal_fast::cuda::batch_norm));
  library.impl("batch_norm_backward", TORCH_BOX(&pal_fast::cuda::batch_norm_backward));
  library.impl("batch_norm_double_backward", TORCH_BOX(&pal_fast::cuda::batch_norm_double_backward));
}

// Batch normalisation on the GPU: the operators, which check, allocate and launch.
#include <torch/csrc/stable/library.h>

#include <utility>

#include "batch_norm.h"
#include "cuda/batch_norm/params.h"
#include "cuda/device.h"

namespace pal_fast::cuda {
namespace {

// Prepares a launch: the checked problem, its plan, and the parameters that all operators have in common.
class Launch {
 public:
  Launch(BatchNormTensors tensors, bool training, bool relu)
      : tensors_(std::move(tensors)), current_(tensors_.input.get_device_index()) {
    const int32_t device = tensors_.input.get_device_index();
    params.problem = check_batch_norm(tensors_, training, relu);
    params.storage = storage_of(tensors_.input.scalar_type());
    params.input = tensors_.input.const_data_ptr();
    params.grad = data_or_null(tensors_.grad);
    params.grad_grad = data_or_null(tensors_.grad_grad);
    params.weight = data_or_null(tensors_.weight);
    params.bias = data_or_null(tensors_.bias);
    params.sums = data_or_null(tensors_.sums);
    params.grad_sums = data_or_null(tensors_.grad_sums);
    params.statistics = mutable_data_or_null(tensors_.statistics);
    params.running_mean = mutable_data_or_null(tensors_.running_mean);
    params.running_variance = mutable_data_or_null(tensors_.running_variance);
    // Outputs are freshly allocated, hence aligned.
    const bool all_aligned = aligned(params.input) && aligned(params.grad) && aligned(params.grad_grad);
    params.plan = plan_batch_norm(params.problem, params.storage, all_aligned, multiprocessor_count(device));
    stream = current_stream(device);
  }

  // Allocates the workspace through which the splits of a tile combine, if tiles are split.
  void allocate_partial() {
    if (params.plan.splits() > 1) {
      partial_ = allocate_per_channel(tensors_.input, batch_norm_partial_rows(params.plan));
      tickets_ = tickets(tensors_.input, params.plan.tiles, stream);
      params.partial = partial_->mutable_data_ptr();
      params.tickets = tickets_.counts;
    }
  }

  BatchNormParams params;
  void* stream = nullptr;

 private:
  BatchNormTensors tensors_;  // owns what `params` points to, including copies in another memory format
  CudaDeviceGuard current_;
  OptionalTensor partial_;
  Tickets tickets_;
};

Tensor batch_norm_statistics(const Tensor& input, const OptionalTensor& running_mean,
                             const OptionalTensor& running_variance, bool training, double momentum, double eps) {
  const BatchNormTensors tensors{.input = input, .running_mean = running_mean, .running_variance = running_variance};
  Launch launch(tensors, training, false);
  check_running(tensors, training);
  const Tensor statistics = allocate_per_channel(input, 2);
  launch.params.statistics = statistics.mutable_data_ptr();
  launch.params.momentum = momentum;
  launch.params.eps = eps;
  launch.allocate_partial();
  launch_batch_norm_statistics(launch.params, launch.stream);
  return statistics;
}

Tensor batch_norm(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                  const Tensor& statistics, bool training, bool relu) {
  Launch launch({.input = input, .weight = weight, .bias = bias, .statistics = statistics}, training, relu);
  const Tensor output = allocate_like_input(input, true);
  launch.params.output = mutable_data_or_null(output);
  launch_batch_norm_forward(launch.params, launch.stream);
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
  launch.params.output = mutable_data_or_null(grad_input);
  launch.params.channel_output = mutable_data_or_null(sums);
  launch.allocate_partial();
  launch_batch_norm_backward(launch.params, launch.stream);
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
  launch.params.output = mutable_data_or_null(grad_grad);
  launch.params.second_output = mutable_data_or_null(grad_input);
  launch.params.channel_output = mutable_data_or_null(grad_weight);
  launch.allocate_partial();
  launch_batch_norm_double_backward(launch.params, launch.stream);
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

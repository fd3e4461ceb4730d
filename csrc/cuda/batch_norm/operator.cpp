// Batch normalisation on the GPU: workspace, parameters and launch of each operator.
#include "batch_norm.h"
#include "cuda/batch_norm/params.h"
#include "cuda/device.h"

namespace pal_fast::cuda {
namespace {

// Prepares a launch: the device, the plan, and the parameters that all operators have in common.
class Launch {
 public:
  Launch(const BatchNormTensors& tensors, const BatchNormProblem& problem)
      : input_(tensors.input), current_(tensors.input.get_device_index()) {
    const int32_t device = input_.get_device_index();
    params.problem = problem;
    params.storage = storage_of(input_.scalar_type());
    params.input = input_.const_data_ptr();
    params.grad = data_or_null(tensors.grad);
    params.grad_grad = data_or_null(tensors.grad_grad);
    params.weight = data_or_null(tensors.weight);
    params.bias = data_or_null(tensors.bias);
    params.sums = data_or_null(tensors.sums);
    params.grad_sums = data_or_null(tensors.grad_sums);
    params.statistics = mutable_data_or_null(tensors.statistics);
    params.running_mean = mutable_data_or_null(tensors.running_mean);
    params.running_variance = mutable_data_or_null(tensors.running_variance);
    // Outputs are freshly allocated, hence aligned.
    const bool all_aligned = aligned(params.input) && aligned(params.grad) && aligned(params.grad_grad);
    params.plan = plan_batch_norm(params.problem, params.storage, all_aligned, multiprocessor_count(device));
    stream = current_stream(device);
  }

  // Allocates the workspace through which the splits of a tile combine, if tiles are split.
  void allocate_partial() {
    if (params.plan.splits() > 1) {
      partial_ = allocate_per_channel(input_, batch_norm_partial_rows(params.plan));
      tickets_ = tickets(input_, params.plan.tiles, stream);
      params.partial = partial_->mutable_data_ptr();
      params.tickets = tickets_.counts;
    }
  }

  BatchNormParams params;
  void* stream = nullptr;

 private:
  const Tensor& input_;
  CudaDeviceGuard current_;
  OptionalTensor partial_;
  Tickets tickets_;
};

void batch_norm_statistics(const BatchNormTensors& tensors, const BatchNormProblem& problem, double momentum,
                           double eps, const Tensor& statistics) {
  Launch launch(tensors, problem);
  launch.params.statistics = mutable_data_or_null(statistics);
  launch.params.momentum = momentum;
  launch.params.eps = eps;
  launch.allocate_partial();
  launch_batch_norm_statistics(launch.params, launch.stream);
}

void batch_norm(const BatchNormTensors& tensors, const BatchNormProblem& problem, const Tensor& output) {
  Launch launch(tensors, problem);
  launch.params.output = mutable_data_or_null(output);
  launch_batch_norm_forward(launch.params, launch.stream);
}

void batch_norm_backward(const BatchNormTensors& tensors, const BatchNormProblem& problem, const Tensor& grad_input,
                         const Tensor& sums) {
  Launch launch(tensors, problem);
  launch.params.output = mutable_data_or_null(grad_input);
  launch.params.channel_output = mutable_data_or_null(sums);
  launch.allocate_partial();
  launch_batch_norm_backward(launch.params, launch.stream);
}

void batch_norm_double_backward(const BatchNormTensors& tensors, const BatchNormProblem& problem,
                                const Tensor& grad_grad, const Tensor& grad_input, const Tensor& grad_weight) {
  Launch launch(tensors, problem);
  launch.params.output = mutable_data_or_null(grad_grad);
  launch.params.second_output = mutable_data_or_null(grad_input);
  launch.params.channel_output = mutable_data_or_null(grad_weight);
  launch.allocate_partial();
  launch_batch_norm_double_backward(launch.params, launch.stream);
}

}  // namespace

const BatchNormBackend batch_norm_backend = {&batch_norm_statistics, &batch_norm, &batch_norm_backward,
                                             &batch_norm_double_backward};

}  // namespace pal_fast::cuda

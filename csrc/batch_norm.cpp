// Batch normalisation with a fused second derivative: schemas, checks and allocation.
#include "batch_norm.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "checks.h"

namespace pal_fast {
namespace {

[[nodiscard]] bool same_shape(const Tensor& one, const Tensor& other) {
  const auto a = one.sizes();
  const auto b = other.sizes();
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

[[nodiscard]] bool has_layout(const Tensor& tensor, Layout layout) {
  return layout == Layout::contiguous ? tensor.is_contiguous() : is_channels_last(tensor);
}

void check_like_input(const OptionalTensor& tensor, const char* name, const Tensor& input, Layout layout) {
  if (!tensor) {
    return;
  }
  const auto wanted = input.sizes();
  const auto given = tensor->sizes();
  STD_TORCH_CHECK(same_shape(*tensor, input), name, " must have the shape of input, ", shape_text(wanted), ", got ",
                  shape_text(given));
  check_dtype(*tensor, name, input.scalar_type());
  check_same_device(*tensor, name, input, "input");
  STD_TORCH_CHECK(has_layout(*tensor, layout), name, " must have the memory format of input, got strides ",
                  shape_text(tensor->strides()), " beside ", shape_text(input.strides()));
}

void check_per_channel(const OptionalTensor& tensor, const char* name, const Tensor& input, int64_t rows) {
  if (!tensor) {
    return;
  }
  const int64_t channels = input.size(1);
  if (rows == 0) {
    check_shape(*tensor, name, {channels});
  } else {
    check_shape(*tensor, name, {rows, channels});
  }
  check_dtype(*tensor, name, computing_dtype(input.scalar_type()));
  check_contiguous(*tensor, name);
  check_same_device(*tensor, name, input, "input");
}

// `other` in the input's memory format, if it has the input's shape; a copy only if the formats differ. A compiled
// graph may pass another format than it was traced with: PyTorch orders the strides of an expanded tensor one way when
// traced and another when run.
[[nodiscard]] OptionalTensor in_format_of(const Tensor& input, const OptionalTensor& other) {
  using torch::headeronly::MemoryFormat;
  const Layout layout = input.is_contiguous() ? Layout::contiguous : Layout::channels_last;
  if (!other || !same_shape(*other, input) || !has_layout(input, layout) || has_layout(*other, layout)) {
    return other;
  }
  const bool contiguous = layout == Layout::contiguous;
  return torch::stable::contiguous(*other, contiguous ? MemoryFormat::Contiguous : MemoryFormat::ChannelsLast);
}

// Checks shapes, dtypes, layouts and devices against the input's.
[[nodiscard]] BatchNormProblem check_batch_norm(const BatchNormTensors& tensors, bool training, bool relu) {
  const Tensor& input = tensors.input;
  STD_TORCH_CHECK(input.dim() >= 2 && input.dim() <= 4, "input must have shape [B, C], [B, C, L] or [B, C, H, W], got ",
                  shape_text(input.sizes()));
  check_dtype_in(input, "input", {ScalarType::Half, ScalarType::BFloat16, ScalarType::Float, ScalarType::Double});
  STD_TORCH_CHECK(input.numel() > 0, "input must have at least one element, got shape ", shape_text(input.sizes()));
  const Layout layout = input.is_contiguous() ? Layout::contiguous : Layout::channels_last;
  STD_TORCH_CHECK(layout == Layout::contiguous || is_channels_last(input),
                  "input must be contiguous or channels_last, got strides ", shape_text(input.strides()), " for shape ",
                  shape_text(input.sizes()));
  check_like_input(tensors.grad, "grad", input, layout);
  check_like_input(tensors.grad_grad, "grad_grad_input", input, layout);
  check_per_channel(tensors.weight, "weight", input, 0);
  check_per_channel(tensors.bias, "bias", input, 0);
  check_per_channel(tensors.statistics, "statistics", input, 2);
  check_per_channel(tensors.grad_sums, "grad_sums", input, 2);
  check_per_channel(tensors.running_mean, "running_mean", input, 0);
  check_per_channel(tensors.running_variance, "running_var", input, 0);
  if (tensors.sums && (training || tensors.sums->numel() > 0)) {
    check_per_channel(tensors.sums, "sums", input, 2);
  }
  const int64_t batch = input.size(0);
  const int64_t channels = input.size(1);
  return {batch, channels, input.numel() / (batch * channels), layout, training, relu};
}

// Checks that the running statistics are given outside training, and that M is at least 2 in training.
void check_running(const BatchNormTensors& tensors, bool training) {
  if (!training) {
    STD_TORCH_CHECK(tensors.running_mean && tensors.running_variance,
                    "running_mean and running_var are needed outside training");
    return;
  }
  const int64_t count = tensors.input.numel() / tensors.input.size(1);
  STD_TORCH_CHECK(count > 1, "input must have more than one value per channel in training, got shape ",
                  shape_text(tensors.input.sizes()));
}

// Uninitialised, of the input's shape and strides; 0 elements if not needed.
[[nodiscard]] Tensor allocate_like_input(const Tensor& input, bool needed) {
  return needed ? torch::stable::empty_like(input) : torch::stable::new_empty(input, {0});
}

template <const BatchNormBackend& Backend>
Tensor batch_norm_statistics(const Tensor& input, const OptionalTensor& running_mean,
                             const OptionalTensor& running_variance, bool training, double momentum, double eps) {
  const BatchNormTensors tensors{.input = input, .running_mean = running_mean, .running_variance = running_variance};
  const BatchNormProblem problem = check_batch_norm(tensors, training, false);
  check_running(tensors, training);
  const Tensor statistics = allocate_per_channel(input, 2);
  Backend.statistics(tensors, problem, momentum, eps, statistics);
  return statistics;
}

template <const BatchNormBackend& Backend>
Tensor batch_norm(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                  const Tensor& statistics, bool training, bool relu) {
  const BatchNormTensors tensors{.input = input, .weight = weight, .bias = bias, .statistics = statistics};
  const BatchNormProblem problem = check_batch_norm(tensors, training, relu);
  const Tensor output = allocate_like_input(input, true);
  Backend.forward(tensors, problem, output);
  return output;
}

template <const BatchNormBackend& Backend>
std::tuple<Tensor, Tensor> batch_norm_backward(const Tensor& grad, const Tensor& input, const OptionalTensor& weight,
                                               const OptionalTensor& bias, const Tensor& statistics, bool training,
                                               bool relu, bool need_input, bool need_sums) {
  const BatchNormTensors tensors{
      .input = input, .grad = in_format_of(input, grad), .weight = weight, .bias = bias, .statistics = statistics};
  const BatchNormProblem problem = check_batch_norm(tensors, training, relu);
  const Tensor grad_input = allocate_like_input(input, need_input);
  const Tensor sums = training || need_sums ? allocate_per_channel(input, 2) : allocate_like_input(input, false);
  Backend.backward(tensors, problem, grad_input, sums);
  return {grad_input, sums};
}

template <const BatchNormBackend& Backend>
std::tuple<Tensor, Tensor, Tensor> batch_norm_double_backward(const OptionalTensor& grad_grad_input,
                                                              const OptionalTensor& grad_sums, const Tensor& grad,
                                                              const Tensor& input, const OptionalTensor& weight,
                                                              const OptionalTensor& bias, const Tensor& statistics,
                                                              const Tensor& sums, bool training, bool relu,
                                                              bool need_input) {
  const BatchNormTensors tensors{.input = input,
                                 .grad = in_format_of(input, grad),
                                 .grad_grad = in_format_of(input, grad_grad_input),
                                 .weight = weight,
                                 .bias = bias,
                                 .statistics = statistics,
                                 .sums = sums,
                                 .grad_sums = grad_sums};
  const BatchNormProblem problem = check_batch_norm(tensors, training, relu);
  const Tensor grad_grad = allocate_like_input(input, true);
  const Tensor grad_input = allocate_like_input(input, need_input);
  const Tensor grad_weight = allocate_per_channel(input, 0);
  Backend.double_backward(tensors, problem, grad_grad, grad_input, grad_weight);
  return {grad_grad, grad_input, grad_weight};
}

template <const BatchNormBackend& Backend>
void implement(auto& library) {
  library.impl("batch_norm_statistics", TORCH_BOX(&batch_norm_statistics<Backend>));
  library.impl("batch_norm", TORCH_BOX(&batch_norm<Backend>));
  library.impl("batch_norm_backward", TORCH_BOX(&batch_norm_backward<Backend>));
  library.impl("batch_norm_double_backward", TORCH_BOX(&batch_norm_double_backward<Backend>));
}

}  // namespace

Tensor allocate_per_channel(const Tensor& input, int64_t rows) {
  const ScalarType dtype = computing_dtype(input.scalar_type());
  const int64_t channels = input.size(1);
  return rows == 0 ? torch::stable::new_empty(input, {channels}, dtype)
                   : torch::stable::new_empty(input, {rows, channels}, dtype);
}

}  // namespace pal_fast

STABLE_TORCH_LIBRARY_FRAGMENT(pal_fast, library) {
  library.def(
      "batch_norm_statistics(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, bool training, "
      "float momentum, float eps) -> Tensor");
  library.def(
      "batch_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor statistics, bool training, bool relu) -> Tensor");
  library.def(
      "batch_norm_backward(Tensor grad, Tensor input, Tensor? weight, Tensor? bias, Tensor statistics, bool training, "
      "bool relu, bool need_input, bool need_sums) -> (Tensor, Tensor)");
  library.def(
      "batch_norm_double_backward(Tensor? grad_grad_input, Tensor? grad_sums, Tensor grad, Tensor input, "
      "Tensor? weight, Tensor? bias, Tensor statistics, Tensor sums, bool training, bool relu, bool need_input) "
      "-> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pal_fast, CPU, library) { pal_fast::implement<pal_fast::cpu::batch_norm_backend>(library); }
#ifdef PAL_FAST_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(pal_fast, CUDA, library) { pal_fast::implement<pal_fast::cuda::batch_norm_backend>(library); }
#endif

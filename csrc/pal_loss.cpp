// The fused loss: checks and allocation.
#include "pal_loss.h"

#include <torch/csrc/stable/ops.h>

#include <vector>

#include "landmark_heatmap.h"

namespace pal_fast {
namespace {

// Checks activation and gradient and describes the problem.
LossProblem check_layer(const OptionalTensor& activation, const OptionalTensor& gradient, int64_t attribution,
                        bool absolute, int64_t grouping, int64_t channel_count) {
  LossProblem problem;
  problem.attribution = check_choice<Attribution>(attribution, "attribution");
  problem.grouping = check_choice<Grouping>(grouping, "grouping");
  problem.absolute = absolute;
  STD_TORCH_CHECK(activation.has_value() == problem.reads_activation(), "activation must ",
                  problem.reads_activation() ? "be given" : "be None", " for attribution ", attribution);
  STD_TORCH_CHECK(gradient.has_value() == problem.reads_gradient(), "gradient must ",
                  problem.reads_gradient() ? "be given" : "be None", " for attribution ", attribution);

  const Tensor& layer = layer_tensor(activation, gradient);
  const char* name = activation ? "activation" : "gradient";
  check_dimensions(layer, name, 4, "[B, C, H, W]");
  check_dtype_in(layer, name, {ScalarType::Half, ScalarType::BFloat16, ScalarType::Float, ScalarType::Double});
  problem.batch = layer.size(0);
  problem.channels = layer.size(1);
  problem.height = layer.size(2);
  problem.width = layer.size(3);
  STD_TORCH_CHECK(problem.sample_elements() > 0, name, " must have at least one channel and one cell, got ",
                  shape_text(layer.sizes()));
  problem.count = channel_count;
  STD_TORCH_CHECK(channel_count >= 1 && channel_count <= problem.channels, "channel_count must lie between 1 and ",
                  problem.channels, ", the layer's channels, got ", channel_count);

  bool contiguous = layer.is_contiguous();
  bool channels_last = is_channels_last(layer);
  if (activation && gradient) {
    check_shape(*gradient, "gradient", {problem.batch, problem.channels, problem.height, problem.width});
    check_dtype(*gradient, "gradient", layer.scalar_type());
    check_same_device(*gradient, "gradient", layer, name);
    contiguous = contiguous && gradient->is_contiguous();
    channels_last = channels_last && is_channels_last(*gradient);
  }
  STD_TORCH_CHECK(contiguous || channels_last,
                  "activation and gradient must both be contiguous or both channels_last, got strides ",
                  activation ? shape_text(activation->strides()) : std::string("(None)"), " and ",
                  gradient ? shape_text(gradient->strides()) : std::string("(None)"));
  problem.layout = contiguous ? Layout::contiguous : Layout::channels_last;
  return problem;
}

void check_per_sample(const Tensor& tensor, const char* name, std::initializer_list<int64_t> shape, ScalarType dtype,
                      const Tensor& layer) {
  check_shape(tensor, name, shape);
  check_dtype(tensor, name, dtype);
  check_contiguous(tensor, name);
  check_same_device(tensor, name, layer, "the layer's output");
}

}  // namespace

const Tensor& layer_tensor(const OptionalTensor& activation, const OptionalTensor& gradient) {
  return activation ? *activation : *gradient;
}

LossInputs check_pal_loss(const OptionalTensor& activation, const OptionalTensor& gradient,
                          const OptionalTensor& heatmap, const OptionalTensor& landmarks, const OptionalTensor& visible,
                          const OptionalTensor& weights, const OptionalTensor& sample_weight, double image_height,
                          double image_width, double sigma, int64_t combine, int64_t normalize, int64_t attribution,
                          bool absolute, int64_t grouping, int64_t channel_count, int64_t score, int64_t scale,
                          int64_t reduction) {
  LossInputs inputs;
  inputs.problem = check_layer(activation, gradient, attribution, absolute, grouping, channel_count);
  inputs.options = {check_choice<Score>(score, "score"), check_choice<Scale>(scale, "scale"),
                    check_choice<Reduction>(reduction, "reduction")};
  const LossProblem& problem = inputs.problem;
  const Tensor& layer = layer_tensor(activation, gradient);
  inputs.dtype = layer.scalar_type();
  inputs.accumulator = computing_dtype(inputs.dtype);

  STD_TORCH_CHECK(heatmap.has_value() != landmarks.has_value(),
                  "exactly one of heatmap and landmarks must be given, got ", heatmap ? "both" : "neither");
  if (landmarks) {
    inputs.heatmap = check_landmark_heatmap(*landmarks, visible, weights, problem.height, problem.width, image_height,
                                            image_width, sigma, combine, normalize);
    check_per_sample(*landmarks, "landmarks", {problem.batch, inputs.heatmap.landmarks, 2}, inputs.accumulator, layer);
  } else {
    STD_TORCH_CHECK(!visible && !weights, "visible and weights belong to landmarks; a heatmap takes neither");
    check_per_sample(*heatmap, "heatmap", {problem.batch, problem.height, problem.width}, inputs.accumulator, layer);
    inputs.heatmap.batch = problem.batch;
    inputs.heatmap.height = problem.height;
    inputs.heatmap.width = problem.width;
  }
  if (sample_weight) {
    check_per_sample(*sample_weight, "sample_weight", {problem.batch}, inputs.accumulator, layer);
  }
  return inputs;
}

LossProblem check_pal_loss_backward(const Tensor& grad_loss, const OptionalTensor& activation,
                                    const OptionalTensor& gradient, const Tensor& plane, const Tensor& coefficients,
                                    const Tensor& factor, int64_t attribution, bool absolute, int64_t grouping,
                                    int64_t channel_count, bool need_activation, bool need_gradient) {
  const LossProblem problem = check_layer(activation, gradient, attribution, absolute, grouping, channel_count);
  const Tensor& layer = layer_tensor(activation, gradient);
  const ScalarType accumulator = computing_dtype(layer.scalar_type());
  STD_TORCH_CHECK(!need_activation || activation, "need_activation, but activation is None");
  STD_TORCH_CHECK(!need_gradient || gradient, "need_gradient, but gradient is None");
  check_per_sample(plane, "plane", {problem.batch, problem.height, problem.width}, accumulator, layer);
  check_per_sample(coefficients, "coefficients", {problem.batch, problem.groups(), 3}, accumulator, layer);
  check_per_sample(factor, "factor", {problem.batch}, accumulator, layer);
  // grad_loss may be expanded (stride 0): sum().backward() passes such a tensor.
  check_dtype(grad_loss, "grad_loss", accumulator);
  check_same_device(grad_loss, "grad_loss", layer, "the layer's output");
  if (grad_loss.dim() != 0) {
    check_shape(grad_loss, "grad_loss", {problem.batch});
  }
  return problem;
}

LossOutputs allocate_loss_outputs(const Tensor& like, const LossInputs& inputs) {
  const LossProblem& problem = inputs.problem;
  const auto allocate = [&](const std::vector<int64_t>& shape) {
    return torch::stable::new_empty(like, shape, inputs.accumulator);
  };
  std::vector<int64_t> loss_shape;
  if (inputs.options.reduction == Reduction::none) {
    loss_shape.push_back(problem.batch);
  }
  return {allocate(loss_shape), allocate({problem.batch, problem.height, problem.width}),
          allocate({problem.batch, problem.groups(), 3}), allocate({problem.batch})};
}

std::tuple<Tensor, Tensor> allocate_layer_gradients(const OptionalTensor& activation, const OptionalTensor& gradient,
                                                    bool need_activation, bool need_gradient) {
  const Tensor& layer = layer_tensor(activation, gradient);
  const auto allocate = [&](const OptionalTensor& input, bool needed) {
    return needed ? torch::stable::empty_like(*input) : torch::stable::new_empty(layer, {0});
  };
  return {allocate(activation, need_activation), allocate(gradient, need_gradient)};
}

}  // namespace pal_fast

// The fused loss: schemas, checks and allocation.
#include "pal_loss.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "checks.h"
#include "landmark_heatmap.h"

namespace pal_fast {
namespace {

// Checks activation and gradient and describes the problem.
[[nodiscard]] LossLayer check_layer(const OptionalTensor& activation, const OptionalTensor& gradient,
                                    int64_t attribution, bool absolute, int64_t grouping, int64_t channel_count) {
  LossLayer checked{activation, gradient, {}};
  LossProblem& problem = checked.problem;
  problem.attribution = check_choice<Attribution>(attribution, "attribution");
  problem.grouping = check_choice<Grouping>(grouping, "grouping");
  problem.absolute = absolute;
  STD_TORCH_CHECK(activation.has_value() == problem.reads_activation(), "activation must ",
                  problem.reads_activation() ? "be given" : "be None", " for attribution ", attribution);
  STD_TORCH_CHECK(gradient.has_value() == problem.reads_gradient(), "gradient must ",
                  problem.reads_gradient() ? "be given" : "be None", " for attribution ", attribution);

  const Tensor& layer = checked.tensor();
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
  return checked;
}

void check_per_sample(const Tensor& tensor, const char* name, std::initializer_list<int64_t> shape,
                      const LossLayer& layer) {
  check_shape(tensor, name, shape);
  check_dtype(tensor, name, computing_dtype(layer.dtype()));
  check_contiguous(tensor, name);
  check_same_device(tensor, name, layer.tensor(), "the layer's output");
}

template <const LossBackend& Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> pal_loss(const OptionalTensor& activation, const OptionalTensor& gradient,
                                                    const OptionalTensor& heatmap, const OptionalTensor& landmarks,
                                                    const OptionalTensor& visible, const OptionalTensor& weights,
                                                    const OptionalTensor& sample_weight, double image_height,
                                                    double image_width, double sigma, int64_t combine,
                                                    int64_t normalize, int64_t attribution, bool absolute,
                                                    int64_t grouping, int64_t channel_count, int64_t score,
                                                    int64_t scale, int64_t reduction) {
  const LossLayer layer = check_layer(activation, gradient, attribution, absolute, grouping, channel_count);
  const LossProblem& problem = layer.problem;
  const ScoreOptions options{check_choice<Score>(score, "score"), check_choice<Scale>(scale, "scale"),
                             check_choice<Reduction>(reduction, "reduction")};
  STD_TORCH_CHECK(heatmap.has_value() != landmarks.has_value(),
                  "exactly one of heatmap and landmarks must be given, got ", heatmap ? "both" : "neither");
  HeatmapProblem heatmap_problem{.batch = problem.batch, .height = problem.height, .width = problem.width};
  if (landmarks) {
    heatmap_problem = check_landmark_heatmap(*landmarks, visible, weights, problem.height, problem.width, image_height,
                                             image_width, sigma, combine, normalize)
                          .problem;
    check_per_sample(*landmarks, "landmarks", {problem.batch, heatmap_problem.landmarks, 2}, layer);
  } else {
    STD_TORCH_CHECK(!visible && !weights, "visible and weights belong to landmarks; a heatmap takes neither");
    check_per_sample(*heatmap, "heatmap", {problem.batch, problem.height, problem.width}, layer);
  }
  if (sample_weight) {
    check_per_sample(*sample_weight, "sample_weight", {problem.batch}, layer);
  }

  const auto allocate = [&](const std::vector<int64_t>& shape) {
    return torch::stable::new_empty(layer.tensor(), shape, computing_dtype(layer.dtype()));
  };
  std::vector<int64_t> loss_shape;
  if (options.reduction == Reduction::none) {
    loss_shape.push_back(problem.batch);
  }
  LossOutputs outputs{allocate(loss_shape), allocate({problem.batch, problem.height, problem.width}),
                      allocate({problem.batch, problem.groups(), 3}), allocate({problem.batch})};
  if (problem.batch > 0) {
    Backend.forward({layer, heatmap, landmarks, visible, weights, sample_weight, heatmap_problem, options}, outputs);
  } else {
    torch::stable::zero_(outputs.loss);
  }
  return {outputs.loss, outputs.plane, outputs.coefficients, outputs.factor};
}

template <const LossBackend& Backend>
std::tuple<Tensor, Tensor> pal_loss_backward(const Tensor& grad_loss, const OptionalTensor& activation,
                                             const OptionalTensor& gradient, const Tensor& plane,
                                             const Tensor& coefficients, const Tensor& factor, int64_t attribution,
                                             bool absolute, int64_t grouping, int64_t channel_count,
                                             bool need_activation, bool need_gradient) {
  const LossLayer layer = check_layer(activation, gradient, attribution, absolute, grouping, channel_count);
  const LossProblem& problem = layer.problem;
  STD_TORCH_CHECK(!need_activation || activation, "need_activation, but activation is None");
  STD_TORCH_CHECK(!need_gradient || gradient, "need_gradient, but gradient is None");
  check_per_sample(plane, "plane", {problem.batch, problem.height, problem.width}, layer);
  check_per_sample(coefficients, "coefficients", {problem.batch, problem.groups(), 3}, layer);
  check_per_sample(factor, "factor", {problem.batch}, layer);
  // grad_loss may be expanded (stride 0): sum().backward() passes such a tensor.
  check_dtype(grad_loss, "grad_loss", computing_dtype(layer.dtype()));
  check_same_device(grad_loss, "grad_loss", layer.tensor(), "the layer's output");
  if (grad_loss.dim() != 0) {
    check_shape(grad_loss, "grad_loss", {problem.batch});
  }

  const auto allocate = [&](const OptionalTensor& input, bool needed) {
    return needed ? torch::stable::empty_like(*input) : torch::stable::new_empty(layer.tensor(), {0});
  };
  const Tensor d_activation = allocate(activation, need_activation), d_gradient = allocate(gradient, need_gradient);
  if (problem.batch > 0 && (need_activation || need_gradient)) {
    Backend.backward({layer, grad_loss, plane, coefficients, factor}, d_activation, d_gradient);
  }
  return {d_activation, d_gradient};
}

template <const LossBackend& Backend>
void implement(auto& library) {
  library.impl("pal_loss", TORCH_BOX(&pal_loss<Backend>));
  library.impl("pal_loss_backward", TORCH_BOX(&pal_loss_backward<Backend>));
}

}  // namespace
}  // namespace pal_fast

STABLE_TORCH_LIBRARY_FRAGMENT(pal_fast, library) {
  library.def(
      "pal_loss(Tensor? activation, Tensor? gradient, Tensor? heatmap, Tensor? landmarks, Tensor? visible, "
      "Tensor? weights, Tensor? sample_weight, float image_height, float image_width, float sigma, int combine, "
      "int normalize, int attribution, bool absolute, int grouping, int channel_count, int score, int scale, "
      "int reduction) -> (Tensor loss, Tensor plane, Tensor coefficients, Tensor factor)");
  library.def(
      "pal_loss_backward(Tensor grad_loss, Tensor? activation, Tensor? gradient, Tensor plane, "
      "Tensor coefficients, Tensor factor, int attribution, bool absolute, int grouping, int channel_count, "
      "bool need_activation, bool need_gradient) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pal_fast, CPU, library) { pal_fast::implement<pal_fast::cpu::loss_backend>(library); }
#ifdef PAL_FAST_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(pal_fast, CUDA, library) { pal_fast::implement<pal_fast::cuda::loss_backend>(library); }
#endif

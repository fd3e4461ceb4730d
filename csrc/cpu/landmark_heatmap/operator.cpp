// Landmarks to heatmap and its backward on the CPU, parallel over samples.
#include <torch/csrc/stable/ops.h>

#include "cpu/gaussians.h"
#include "cpu/instruction_set.h"
#include "landmark_heatmap.h"

namespace pal_fast::cpu {
namespace {

// Grain size of parallel_for, in Gaussians times cells.
constexpr int64_t GRAIN = 65536;

[[nodiscard]] int64_t grain_size(const HeatmapProblem& problem) {
  return std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, problem.cells() * problem.landmarks));
}

template <typename T>
void forward(const HeatmapProblem& problem, const LandmarkTensors<T>& tensors, T* heatmap) {
  const int64_t cells = problem.cells();
  torch::stable::parallel_for(0, problem.batch, grain_size(problem), [&](int64_t first, int64_t last) {
    std::vector<double> scratch, drawn(static_cast<size_t>(cells));
    for (int64_t b = first; b < last; ++b) {
      (void)draw_normalised(problem, tensors.of(b, problem.landmarks), scratch, drawn.data());
      std::transform(drawn.begin(), drawn.end(), heatmap + b * cells, [](double h) { return static_cast<T>(h); });
    }
  });
}

// In place: the gradient [H, W] of a normalised heatmap becomes that of the heatmap before division,
// grad / D - dD * sum(grad * h) / D^2. The derivative of a maximum is divided evenly among the cells that attain it.
void normalisation_backward(const HeatmapProblem& problem, const double* heatmap, double* grad) {
  const int64_t n = problem.cells();
  const double divisor = divisor_of(problem, heatmap);
  if (divisor == 0.0) {
    return;
  }
  const bool peak = problem.normalize == Normalize::peak;
  const double peak_cells = peak ? static_cast<double>(std::count(heatmap, heatmap + n, divisor)) : 1.0;
  const double divisor_term =
      sum_over(n, [&](int64_t i) { return grad[i] * heatmap[i]; }) / divisor / divisor / peak_cells;
  for (int64_t i = 0; i < n; ++i) {
    grad[i] = grad[i] / divisor - (!peak || heatmap[i] == divisor ? divisor_term : 0.0);
  }
}

template <typename T>
void backward(const HeatmapProblem& problem, const LandmarkTensors<T>& tensors, const T* grad, T* d_points,
              T* d_weights) {
  const int64_t cells = problem.cells(), count = problem.landmarks;
  torch::stable::parallel_for(0, problem.batch, grain_size(problem), [&](int64_t first, int64_t last) {
    std::vector<double> raw(static_cast<size_t>(cells)), heatmap(static_cast<size_t>(cells));
    std::vector<double> scratch(static_cast<size_t>(backward_scratch(problem)));
    std::vector<int64_t> winner(problem.combine == Combine::max ? static_cast<size_t>(cells) : 0);
    for (int64_t b = first; b < last; ++b) {
      const Landmarks<T> landmarks = tensors.of(b, count);
      std::copy_n(grad + b * cells, cells, raw.begin());
      if (problem.normalize != Normalize::none) {
        (void)heatmap_kernels<T>().draw(problem, landmarks, scratch.data(), heatmap.data());
        normalisation_backward(problem, heatmap.data(), raw.data());
      }
      heatmap_kernels<T>().backward(problem, landmarks, raw.data(), scratch.data(), winner.data(),
                                    d_points ? d_points + 2 * b * count : nullptr,
                                    d_weights ? d_weights + b * count : nullptr);
    }
  });
}

void landmark_heatmap(const HeatmapInputs& inputs, const Tensor& heatmap) {
  dispatch_computing_type(inputs.landmarks.scalar_type(), [&]<typename T>() {
    forward<T>(inputs.problem, {inputs.landmarks, inputs.visible, inputs.weights}, mutable_data_or_null<T>(heatmap));
  });
}

void landmark_heatmap_backward(const Tensor& grad, const HeatmapInputs& inputs, const Tensor& d_landmarks,
                               const Tensor& d_weights) {
  dispatch_computing_type(inputs.landmarks.scalar_type(), [&]<typename T>() {
    backward<T>(inputs.problem, {inputs.landmarks, inputs.visible, inputs.weights}, data_or_null<T>(grad),
                mutable_data_or_null<T>(d_landmarks), mutable_data_or_null<T>(d_weights));
  });
}

}  // namespace

const HeatmapBackend heatmap_backend = {&landmark_heatmap, &landmark_heatmap_backward};

PAL_FAST_DISPATCH_INSTRUCTION_SET(Kernels, kernels, kernels)

}  // namespace pal_fast::cpu

// Landmarks to heatmap and its backward on the CPU, parallel over samples.
#include <torch/csrc/stable/library.h>
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

Tensor landmark_heatmap(const Tensor& landmarks, const OptionalTensor& visible, const OptionalTensor& weights,
                        int64_t height, int64_t width, double image_height, double image_width, double sigma,
                        int64_t combine, int64_t normalize) {
  const HeatmapProblem problem = check_landmark_heatmap(landmarks, visible, weights, height, width, image_height,
                                                        image_width, sigma, combine, normalize);
  const Tensor heatmap = allocate_heatmap(landmarks, problem);
  const auto compute = [&]<typename T>() {
    forward<T>(problem, LandmarkTensors<T>(landmarks, visible, weights), mutable_data_or_null<T>(heatmap));
  };
  landmarks.scalar_type() == ScalarType::Double ? compute.operator()<double>() : compute.operator()<float>();
  return heatmap;
}

std::tuple<Tensor, Tensor> landmark_heatmap_backward(const Tensor& grad, const Tensor& landmarks,
                                                     const OptionalTensor& visible, const OptionalTensor& weights,
                                                     int64_t height, int64_t width, double image_height,
                                                     double image_width, double sigma, int64_t combine,
                                                     int64_t normalize, bool need_landmarks, bool need_weights) {
  const HeatmapProblem problem = check_landmark_heatmap_backward(grad, landmarks, visible, weights, height, width,
                                                                 image_height, image_width, sigma, combine, normalize);
  const auto gradients = allocate_heatmap_gradients(landmarks, need_landmarks, need_weights);
  const auto compute = [&]<typename T>() {
    backward<T>(problem, LandmarkTensors<T>(landmarks, visible, weights), data_or_null<T>(grad),
                mutable_data_or_null<T>(std::get<0>(gradients)), mutable_data_or_null<T>(std::get<1>(gradients)));
  };
  if (problem.batch * problem.landmarks > 0 && (need_landmarks || need_weights)) {
    landmarks.scalar_type() == ScalarType::Double ? compute.operator()<double>() : compute.operator()<float>();
  }
  return gradients;
}

}  // namespace

PAL_FAST_DISPATCH_INSTRUCTION_SET(Kernels, kernels, kernels)

}  // namespace pal_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(pal_fast, CPU, library) {
  library.impl("landmark_heatmap", TORCH_BOX(&pal_fast::cpu::landmark_heatmap));
  library.impl("landmark_heatmap_backward", TORCH_BOX(&pal_fast::cpu::landmark_heatmap_backward));
}

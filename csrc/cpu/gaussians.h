// Heatmaps of single samples for the CPU operators: drawn by the kernels, normalised here.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/pal_loss/kernels.h"
#include "cpu/standardise.h"
#include "tensors.h"

namespace pal_fast::cpu {

// The landmark tensors of a batch.
template <typename T>
struct LandmarkTensors {
  const T* points;      // [B, K, 2]
  const bool* visible;  // [B, K] or null
  const T* weights;     // [B, K] or null

  LandmarkTensors(const OptionalTensor& landmarks, const OptionalTensor& visible, const OptionalTensor& weights)
      : points(data_or_null<T>(landmarks)), visible(data_or_null<bool>(visible)), weights(data_or_null<T>(weights)) {}

  [[nodiscard]] Landmarks<T> of(int64_t sample, int64_t count) const {
    const int64_t first = sample * count;
    return {points ? points + 2 * first : nullptr, visible ? visible + first : nullptr,
            weights ? weights + first : nullptr};
  }
};

// The divisor of a heatmap [H, W] under `normalize`; 0 if it is not divided.
[[nodiscard]] inline double divisor_of(const HeatmapProblem& problem, const double* heatmap) {
  const int64_t n = problem.cells();
  switch (problem.normalize) {
    case Normalize::peak:
      return *std::max_element(heatmap, heatmap + n);
    case Normalize::sum:
      return sum_over(n, [&](int64_t i) { return heatmap[i]; });
    case Normalize::none:
      break;
  }
  return 0.0;
}

// Writes the normalised heatmap of one sample to out [H, W]. Returns whether any landmark is valid.
template <typename T>
[[nodiscard]] bool draw_normalised(const HeatmapProblem& problem, const Landmarks<T>& landmarks,
                                   std::vector<double>& scratch, double* out) {
  scratch.resize(static_cast<size_t>(draw_scratch(problem)));
  const bool any = heatmap_kernels<T>().draw(problem, landmarks, scratch.data(), out);
  if (const double divisor = divisor_of(problem, out); divisor != 0.0) {
    for (int64_t i = 0; i < problem.cells(); ++i) {
      out[i] /= divisor;
    }
  }
  return any;
}

}  // namespace pal_fast::cpu

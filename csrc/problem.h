// Problem descriptions, as plain numbers: shared by CPU and CUDA, created by the checks in landmark_heatmap.cpp and
// pal_loss.cpp. Does not include PyTorch, so that kernels can include it.
#pragma once

#include <cstdint>

#include "options.h"

namespace pal_fast {

// landmarks [B, K, 2] in an image of image_height x image_width pixels -> heatmap [B, H, W].
struct HeatmapProblem {
  int64_t batch = 0;      // B
  int64_t landmarks = 0;  // K
  int64_t height = 0;     // H
  int64_t width = 0;      // W
  double image_height = 0;
  double image_width = 0;
  double sigma = 0;  // in image pixels
  Combine combine = Combine::sum;
  Normalize normalize = Normalize::none;

  [[nodiscard]] constexpr int64_t cells() const { return height * width; }
};

// activation and gradient [B, C, H, W], of which the first `count` channels take part.
struct LossProblem {
  int64_t batch = 0;     // B
  int64_t channels = 0;  // C
  int64_t count = 0;     // n
  int64_t height = 0;    // H
  int64_t width = 0;     // W
  Layout layout = Layout::contiguous;
  Attribution attribution = Attribution::grad_input;
  bool absolute = true;
  Grouping grouping = Grouping::map;

  [[nodiscard]] constexpr int64_t cells() const { return height * width; }                // N
  [[nodiscard]] constexpr int64_t sample_elements() const { return channels * cells(); }  // C * H * W

  // G: the number of coefficient triples (A, B, mu) of a sample; none for Grouping::map, whose plane is dP/da itself.
  [[nodiscard]] constexpr int64_t groups() const {
    return grouping == Grouping::map ? 0 : grouping == Grouping::all ? 1 : count;
  }
  [[nodiscard]] constexpr bool reads_activation() const { return attribution != Attribution::grad; }
  [[nodiscard]] constexpr bool reads_gradient() const { return attribution != Attribution::activation; }
};

struct ScoreOptions {
  Score score = Score::pearson;
  Scale scale = Scale::sum;
  Reduction reduction = Reduction::mean;
};

}  // namespace pal_fast

// Scores and their derivatives from moments, and the reduction over the batch; all in double.
#pragma once

#include <vector>

#include "cpu/gaussians.h"
#include "pal_loss.h"

namespace pal_fast::cpu {

// The prior of a batch, as landmarks or as a dense heatmap. T is the compute type.
template <typename T>
struct PriorTensors {
  const LossInputs& inputs;
  const T* heatmap;  // [B, H, W], or null if landmarks are given
  LandmarkTensors<T> landmarks;
  const T* sample_weight;  // [B] or null

  [[nodiscard]] double weight(int64_t sample) const {
    return sample_weight ? static_cast<double>(sample_weight[sample]) : 1.0;
  }
};

// One sample's prior: P = -scale * sum z q, with q [H, W] the centred heatmap, for "pearson" divided by its standard
// deviation.
struct Prior {
  double weight;  // w_b: 0 if the sample cannot be scored
  double scale;
};

// The number of terms that are standardised together.
[[nodiscard]] inline double terms_of(const LossProblem& problem) {
  return static_cast<double>(problem.grouping == Grouping::all ? problem.count * problem.cells() : problem.cells());
}

// Computes q [H, W] and the scale.
template <typename T>
[[nodiscard]] Prior prior_of(const PriorTensors<T>& tensors, int64_t sample, std::vector<double>& scratch, double* q) {
  const ScoreOptions& options = tensors.inputs.options;
  const HeatmapProblem& problem = tensors.inputs.heatmap_problem;
  const int64_t cells = problem.cells();
  bool valid = true;
  if (tensors.heatmap) {
    std::copy_n(tensors.heatmap + sample * cells, cells, q);
  } else {
    valid = draw_normalised(problem, tensors.landmarks.of(sample, problem.landmarks), scratch, q);
  }
  const Centred heatmap = centre(q, cells);
  const bool pearson = options.score == Score::pearson;
  valid = valid && std::isfinite(heatmap.deviation) && !(pearson && heatmap.flat);
  const double factor = pearson ? 1.0 / heatmap.deviation : heatmap.unit;
  for (int64_t p = 0; p < cells; ++p) {
    q[p] = valid ? q[p] * factor : 0.0;
  }
  const double terms = terms_of(tensors.inputs.layer.problem);
  const double weight = valid ? tensors.weight(sample) : 0.0;
  if (pearson || options.scale == Scale::mean) {
    return {weight, 1.0 / terms};
  }
  return {weight, options.scale == Scale::sum ? 1.0 : 1.0 / std::sqrt(terms)};
}

// The score P of a group, and dP/da = slope * (q + curve * (a - mean)); exactly 0 for a flat group. A group with NaN is
// not flat, so that NaN propagates to the loss.
struct Group {
  double score = 0;
  double slope = 0;
  double curve = 0;
  double mean = 0;
};

// mean, deviation: of a (population); covariance: the mean of (a - mean) * q.
[[nodiscard]] inline Group score_group(double scale, double terms, double mean, double deviation, double covariance,
                                       bool flat) {
  if (flat) {
    return {};
  }
  const double agreement = covariance / deviation;  // the mean of z * q
  return {-scale * terms * agreement, -scale / deviation, -agreement / deviation, mean};
}

[[nodiscard]] inline Group score_moments(double scale, double terms, const Moments& moments) {
  const double variance = moments.square / terms;
  return score_group(scale, terms, moments.mean, std::sqrt(variance), moments.product / terms,
                     is_flat(moments.mean, variance));
}

template <typename T>
void store_coefficients(const Group& group, T* to) {
  to[0] = clamped<T>(group.slope);
  to[1] = clamped<T>(group.curve);
  to[2] = static_cast<T>(group.mean);
}

// P of the map that `sum` [H, W] over channels amounts to, and plane [H, W] = dP/da. Overwrites `sum`.
template <typename T>
[[nodiscard]] double score_map(const Prior& prior, const double* q, int64_t cells, double* sum, T* plane) {
  const auto terms = static_cast<double>(cells);
  const Centred map = centre(sum, cells);  // z does not depend on the scale, so that the sum serves as the mean
  const double covariance = sum_over(cells, [&](int64_t p) { return sum[p] * q[p]; }) / terms;
  const Group group = score_group(prior.scale, terms, map.mean, map.deviation, covariance, map.flat);
  const double slope = group.slope / map.unit;  // d sum / da is 1
  for (int64_t p = 0; p < cells; ++p) {
    plane[p] = clamped<T>(slope * (q[p] + group.curve * sum[p]));
  }
  return group.score;
}

// loss = sum w P / sum w, sum w P or (per sample) w P, and factor [B] = dloss / dP. A sample of weight 0 contributes 0
// whatever its score, NaN included.
template <typename T>
void reduce(Reduction reduction, const std::vector<double>& scores, const std::vector<double>& weights, T* loss,
            T* factor) {
  const auto batch = static_cast<int64_t>(scores.size());
  double total = 0.0, mass = 0.0;
  for (int64_t b = 0; b < batch; ++b) {
    const double weighted = weights[b] == 0.0 ? 0.0 : weights[b] * scores[b];
    if (reduction == Reduction::none) {
      loss[b] = static_cast<T>(weighted);
    }
    total += weighted;
    mass += weights[b];
  }
  double share = 1.0;
  if (reduction == Reduction::mean) {
    share = mass == 0.0 ? 0.0 : 1.0 / mass;
  }
  if (reduction != Reduction::none) {
    loss[0] = static_cast<T>(mass == 0.0 && reduction == Reduction::mean ? 0.0 : total * share);
  }
  for (int64_t b = 0; b < batch; ++b) {
    factor[b] = static_cast<T>(weights[b] * share);
  }
}

}  // namespace pal_fast::cpu

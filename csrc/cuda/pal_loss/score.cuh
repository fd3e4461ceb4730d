// A sample's prior (the heatmap to score against), scores and their derivatives, and the reduction over the batch.
#pragma once

#include <cfloat>

#include "cuda/drawing.cuh"

namespace pal_fast::cuda {

inline constexpr double FLAT_VARIANCE_RATIO = FLAT_TOLERANCE * FLAT_TOLERANCE;

// Kernel argument: the prior, as landmarks or as a dense heatmap, and how it is scored.
template <typename T>
struct PriorInputs {
  Gaussians<T> gaussians;
  Pointer<const T> dense;          // [B, H, W], or null
  Pointer<const T> sample_weight;  // [B], or null
  Combine combine;
  Normalize normalize;
  Score score;
  Scale scale;

  // Writes the sample's cells [begin, end), not normalised, to out[0, end - begin). Without a barrier, a thread may
  // then read cells begin + threadIdx.x + i * blockDim.x only.
  __device__ __forceinline__ void fill(int64_t sample, int cells, int begin, int end, Pointer<T> out,
                                       Pointer<T> factors) const {
    if (dense) {
      for (int cell = begin + threadIdx.x; cell < end; cell += blockDim.x) {
        out[cell - begin] = dense[sample * cells + cell];
      }
    } else {
      draw_cells(sample, begin, end, out, factors);
    }
  }

  template <int Unroll = 4>
  __device__ __forceinline__ void draw_cells(int64_t sample, int begin, int end, Pointer<T> out,
                                             Pointer<T> factors) const {
    draw<Unroll>(gaussians, combine == Combine::max, sample, begin, end, out, Pointer<int>(nullptr), factors);
  }
};

// Moments of a sample's heatmap before normalisation.
struct PriorMoments {
  double total, peak, mean, variance;
};

// The weight of a sample and the scales of its heatmap and score.
struct PriorScale {
  double weight;   // w_b: 0 if the sample cannot be scored
  double inverse;  // multiplies heatmap - mean: 1 / divisor; for "pearson" its sign / standard deviation
  double scale;    // s * terms
};

template <typename T>
[[nodiscard]] __device__ PriorScale prior_scale(const PriorInputs<T>& prior, int64_t sample,
                                                const PriorMoments& heatmap, bool annotated, double terms) {
  const double infinity = static_cast<double>(INFINITY);
  bool valid = annotated && fabs(heatmap.mean) < infinity;
  if (prior.score == Score::pearson) {
    valid = valid && heatmap.variance > FLAT_VARIANCE_RATIO * (heatmap.variance + heatmap.mean * heatmap.mean);
  }
  const double weight = prior.sample_weight ? static_cast<double>(prior.sample_weight[sample]) : 1.0;
  const double divisor = prior.normalize == Normalize::peak  ? heatmap.peak
                         : prior.normalize == Normalize::sum ? heatmap.total
                                                             : 1.0;
  double inverse = divisor == 0.0 ? 1.0 : 1.0 / divisor, scale = 1.0;
  if (prior.score == Score::pearson) {
    // Standardised, so that no scale of the heatmap leaves T's range; only the divisor's sign matters.
    inverse = heatmap.variance > 0.0 ? copysign(1.0 / sqrt(heatmap.variance), inverse) : 1.0;
  } else if (prior.scale != Scale::mean) {
    scale = prior.scale == Scale::sum ? terms : sqrt(terms);
  }
  return {valid ? weight : 0.0, inverse, scale};
}

// The score P of a group, and dP/da = slope * (hc + curve * (a - mean)); exactly 0 for a flat group. A group with NaN
// is not flat, so that NaN propagates to the loss.
struct Group {
  double score = 0;
  double slope = 0;
  double curve = 0;
  double mean = 0;
};

// covariance: the mean of (a - mean) * hc.
[[nodiscard]] __device__ __forceinline__ Group score_group(double mean, double variance, double covariance,
                                                           double scale, double terms) {
  if (variance <= FLAT_VARIANCE_RATIO * (variance + mean * mean)) {
    return {};
  }
  const double inverse = 1.0 / sqrt(variance);
  const double agreement = covariance * inverse;
  return {-scale * agreement, -scale / terms * inverse, -agreement * inverse, mean};
}

// Converts to T, clamped to 2^-24 of T's range, so that a loss scale (AMP) cannot make it infinite: infinity times a
// zero of the layer would be NaN.
template <typename T>
[[nodiscard]] __device__ __forceinline__ T clamped(double value) {
  constexpr double largest = (std::is_same_v<T, float> ? static_cast<double>(FLT_MAX) : DBL_MAX) * 0x1p-24;
  return static_cast<T>(value > largest ? largest : value < -largest ? -largest : value);
}

// Kernel argument: outputs and workspace of the forward.
template <typename T>
struct LossOutput {
  Pointer<T> loss;            // [] or [B]
  Pointer<T> plane;           // [B, H, W]
  Pointer<T> coefficients;    // [B, G, 3]
  Pointer<T> factor;          // [B]
  Pointer<double> scores;     // [B, 2], workspace
  Pointer<unsigned> tickets;  // [B + 1], arrival counters: the samples', and the batch's
  int64_t batch;
  Reduction reduction;

  __device__ __forceinline__ void store_coefficients(int64_t index, const Group& group) const {
    coefficients[3 * index] = clamped<T>(group.slope);
    coefficients[3 * index + 1] = clamped<T>(group.curve);
    coefficients[3 * index + 2] = static_cast<T>(group.mean);
  }
};

// Called by one block per sample, with the sample's score, at its end. The last sample's block reduces over the batch.
template <typename T>
__device__ void finish_sample(const LossOutput<T>& output, int64_t sample, double score, double weight,
                              Pointer<double> scratch, Pointer<unsigned> flag) {
  if (output.reduction == Reduction::none) {
    if (threadIdx.x == 0) {
      output.loss[sample] = static_cast<T>(weight == 0.0 ? 0.0 : weight * score);
      output.factor[sample] = static_cast<T>(weight);
    }
    return;
  }
  if (threadIdx.x == 0) {
    output.scores[2 * sample] = score;
    output.scores[2 * sample + 1] = weight;
  }
  if (!is_last_block(output.tickets + output.batch, static_cast<unsigned>(output.batch), flag)) {
    return;
  }
  double sums[2] = {0.0, 0.0};  // of w P and of w
#pragma unroll 4
  for (int64_t b = threadIdx.x; b < output.batch; b += blockDim.x) {
    const double w = output.scores[2 * b + 1];
    sums[0] += w == 0.0 ? 0.0 : w * output.scores[2 * b];
    sums[1] += w;
  }
  block_reduce<2>(sums, scratch, Sum());
  const bool mean = output.reduction == Reduction::mean;
  const double share = !mean ? 1.0 : sums[1] == 0.0 ? 0.0 : 1.0 / sums[1];
  if (threadIdx.x == 0) {
    output.loss[0] = static_cast<T>(mean && sums[1] == 0.0 ? 0.0 : sums[0] * share);
  }
  for (int64_t b = threadIdx.x; b < output.batch; b += blockDim.x) {
    output.factor[b] = static_cast<T>(output.scores[2 * b + 1] * share);
  }
}

}  // namespace pal_fast::cuda

// The prior of a sample, its score and the derivative of that, and the batch's loss.
#pragma once

#include <cfloat>

#include "drawing.cuh"

namespace pal_fast::cuda {

inline constexpr double FLAT = FLAT_TOLERANCE * FLAT_TOLERANCE;

// Where attribution should lie, as kernels take it: landmarks or a dense heatmap.
template <typename T>
struct PriorInputs {
  Gaussians<T> gaussians;
  Pointer<const T> dense;          // [B, H, W], or null
  Pointer<const T> sample_weight;  // [B], or null
  Combine combine;
  Normalize normalize;
  Score score;
  Scale scale;

  // The sample's cells [begin, end), not normalised, into out[0, end - begin). Then every thread sees the cells begin +
  // threadIdx.x + i * blockDim.x.
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

  template <int AT_ONCE = 4>
  __device__ __forceinline__ void draw_cells(int64_t sample, int begin, int end, Pointer<T> out,
                                             Pointer<T> factors) const {
    draw<AT_ONCE>(gaussians, combine == Combine::max, sample, begin, end, out, Pointer<int>(nullptr), factors);
  }
};

// What a sample's heatmap, not normalised, comes to; and with it, once a sample, its weight and the scale of its score.
struct PriorMoments {
  double total, peak, mean, variance;
};
struct PriorScale {
  double weight;   // w_b: 0 if the sample cannot be scored
  double inverse;  // 1 / what the heatmap less its mean is divided by; under "pearson" its standard deviation, too
  double scale;    // s * terms
};

template <typename T>
[[nodiscard]] __device__ PriorScale prior_scale(const PriorInputs<T>& prior, int64_t sample,
                                                const PriorMoments& heatmap, bool annotated, double terms) {
  const double infinity = static_cast<double>(INFINITY);
  bool valid = annotated && fabs(heatmap.mean) < infinity;
  if (prior.score == Score::pearson) {
    valid = valid && heatmap.variance > FLAT * (heatmap.variance + heatmap.mean * heatmap.mean);
  }
  const double weight = prior.sample_weight ? static_cast<double>(prior.sample_weight[sample]) : 1.0;
  const double divisor = prior.normalize == Normalize::peak  ? heatmap.peak
                         : prior.normalize == Normalize::sum ? heatmap.total
                                                             : 1.0;
  double inverse = divisor == 0.0 ? 1.0 : 1.0 / divisor, scale = 1.0;
  if (prior.score == Score::pearson) {
    // Standardised, so that no scale of the heatmap is lost to T; of the divisor the sign is left.
    inverse = heatmap.variance > 0.0 ? copysign(1.0 / sqrt(heatmap.variance), inverse) : 1.0;
  } else if (prior.scale != Scale::mean) {
    scale = prior.scale == Scale::sum ? terms : sqrt(terms);
  }
  return {valid ? weight : 0.0, inverse, scale};
}

// P of a group, and dP/da = slope * (hc + curve * (a - mean)); exactly 0 if it is flat. A group that holds NaN is not
// flat: NaN reaches the loss.
struct Group {
  double score = 0;
  double slope = 0;
  double curve = 0;
  double mean = 0;
};

// covariance: the mean of (a - mu) * hc.
[[nodiscard]] __device__ __forceinline__ Group score_group(double mean, double variance, double covariance,
                                                           double scale, double terms) {
  if (variance <= FLAT * (variance + mean * mean)) {
    return {};
  }
  const double inverse = 1.0 / sqrt(variance);
  const double agreement = covariance * inverse;
  return {-scale * agreement, -scale / terms * inverse, -agreement * inverse, mean};
}

// As T, and so far within T's range that a loss scale does not make it infinite: infinity times a zero of the layer
// would be NaN.
template <typename T>
[[nodiscard]] __device__ __forceinline__ T bounded(double value) {
  constexpr double largest = (std::is_same_v<T, float> ? static_cast<double>(FLT_MAX) : DBL_MAX) * 0x1p-24;
  return static_cast<T>(value > largest ? largest : value < -largest ? -largest : value);
}

template <typename T>
struct LossOutput {
  Pointer<T> loss;            // [] or [B]
  Pointer<T> plane;           // [B, H, W]
  Pointer<T> coefficients;    // [B, G, 3]
  Pointer<T> factor;          // [B]
  Pointer<double> scores;     // [B, 2], workspace
  Pointer<unsigned> tickets;  // [B + 1]: the samples', and the batch's
  int64_t batch;
  Reduction reduction;

  __device__ __forceinline__ void store_coefficients(int64_t index, const Group& group) const {
    coefficients[3 * index] = bounded<T>(group.slope);
    coefficients[3 * index + 1] = bounded<T>(group.curve);
    coefficients[3 * index + 2] = static_cast<T>(group.mean);
  }
};

// Called by one block a sample, at its end: a sample's score becomes part of the batch's loss.
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
  if (!last_block(output.tickets + output.batch, static_cast<unsigned>(output.batch), flag)) {
    return;
  }
  double sums[2] = {0.0, 0.0};  // of w P and of w
#pragma unroll 4
  for (int64_t b = threadIdx.x; b < output.batch; b += blockDim.x) {
    const double w = output.scores[2 * b + 1];
    sums[0] += w == 0.0 ? 0.0 : w * output.scores[2 * b];
    sums[1] += w;
  }
  reduce_block<2>(sums, scratch, Sum());
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

// From the map of a sample, summed over channels, to its score and the derivative of that.
#pragma once

#include "layer.cuh"
#include "pal_loss_map_shared.cuh"
#include "pal_loss_score.cuh"

namespace pal_fast::cuda {

// The sum of a - pivot over channels at every cell, [cells], as the sample's last block finds it: index i is cell i -
// rotation, modulo the number of cells.
template <typename T>
struct SummedMap {
  Pointer<const T> sums;
  int cells;
  int rotation;

  [[nodiscard]] __device__ __forceinline__ int cell(int index) const {
    return index < rotation ? index - rotation + cells : index - rotation;
  }
};

// to(cell, its sum, its value in `heatmap`) for every cell that is this thread's, a few of which are loaded together.
template <typename T, typename To>
__device__ __forceinline__ void for_each_cell(const SummedMap<T>& map, Pointer<const T> heatmap, const To& to) {
  constexpr int U = 4;
  const int threads = blockDim.x;
  for (int first = threadIdx.x; first < map.cells; first += U * threads) {
    T sum[U], h[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int i = first + u * threads;
      sum[u] = i < map.cells ? map.sums[i] : T(0);
      h[u] = i < map.cells ? heatmap[map.cell(i)] : T(0);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int i = first + u * threads;
      if (i < map.cells) {
        to(map.cell(i), sum[u], h[u]);
      }
    }
  }
}

// By all threads of the block. The map holds sums of a - pivot; totals [blocks, 2]: sums of that and of its square over
// shares of the sample, for All.
template <bool All, typename S, typename T>
__device__ void score_map(const Layer<S>& layer, const PriorInputs<T>& prior, const LossOutput<T>& output,
                          const MapShared<S>& shared, int64_t sample, T pivot, const SummedMap<T>& map,
                          Pointer<const T> heatmap, Pointer<const double> totals, int blocks) {
  const int cells = layer.cells;
  const bool annotated = prior.dense || valid_landmarks(prior.gaussians, sample, shared.integers) > 0;

  double sums[3] = {0.0, 0.0, 0.0};
  double peak[1] = {-static_cast<double>(INFINITY)};
  for_each_cell(map, heatmap, [&](int, double m, double h) {
    sums[0] += m;
    sums[1] += h;
    peak[0] = Maximum()(peak[0], h);
  });
  reduce_block<3>(sums, shared.doubles, Sum());
  if (prior.normalize == Normalize::peak) {
    reduce_block<1>(peak, shared.doubles, Maximum());
  }
  const double mean_m = sums[0] / cells, total_h = sums[1], mean_h = total_h / cells;
  sums[0] = sums[1] = sums[2] = 0.0;
  for_each_cell(map, heatmap, [&](int, double m, double h) {
    sums[0] += (m - mean_m) * (m - mean_m);
    sums[1] += (h - mean_h) * (h - mean_h);
    sums[2] += (m - mean_m) * (h - mean_h);
  });
  reduce_block<3>(sums, shared.doubles, Sum());
  double of_elements[2] = {0.0, 0.0};
  if constexpr (All) {
    for (int block = threadIdx.x; block < blocks; block += blockDim.x) {
      of_elements[0] += totals[2 * block];
      of_elements[1] += totals[2 * block + 1];
    }
    reduce_block<2>(of_elements, shared.doubles, Sum());
  }

  if (threadIdx.x == 0) {
    // A map is the mean over its n channels; "all" has its mean and its covariance, but the variance of every element.
    const double share = 1.0 / layer.count;
    const double terms = All ? static_cast<double>(layer.count) * cells : static_cast<double>(cells);
    const PriorScale scale = prior_scale(prior, sample, {total_h, peak[0], mean_h, sums[1] / cells}, annotated, terms);
    double offset = mean_m * share, variance = sums[0] / cells * share * share;
    if constexpr (All) {
      offset = of_elements[0] / terms;
      variance = of_elements[1] / terms - offset * offset;
    }
    Group group = score_group(pivot + offset, variance, sums[2] / cells * share * scale.inverse, scale.scale, terms);
    if (scale.weight == 0.0) {
      group = {};
    }
    if constexpr (All) {
      output.store_coefficients(sample, group);
    }
    shared.result[0] = group.score;
    shared.result[1] = scale.weight;
    shared.result[2] = scale.inverse;
    shared.result[3] = group.slope * share;
    shared.result[4] =
        All ? group.curve * (static_cast<double>(static_cast<T>(group.mean)) - group.mean) : group.curve * share;
  }
  __syncthreads();
  const double score = shared.result[0], weight = shared.result[1], inverse = shared.result[2];
  const double slope = shared.result[3], curve = shared.result[4];
  const Pointer<T> plane = output.plane + sample * cells;
  for_each_cell(map, heatmap, [&](int cell, double m, double h) {
    double value = (h - mean_h) * inverse;
    if constexpr (All) {
      value += curve;  // what rounding the mean to T takes from curve * (a - mean)
    } else {
      value = slope * (value + curve * (m - mean_m));
    }
    plane[cell] = weight == 0.0 ? T(0) : bounded<T>(value);
  });
  finish_sample(output, sample, score, weight, shared.doubles, shared.flag);
}

}  // namespace pal_fast::cuda

// The score of a sample's map, summed over channels, against its heatmap, and the derivative of the score.
#pragma once

#include "cuda/pal_loss/layer.cuh"
#include "cuda/pal_loss/map_shared.cuh"
#include "cuda/pal_loss/score.cuh"
#include "cuda/pal_loss/summed_map.cuh"

namespace pal_fast::cuda {

// Block-stride loop: calls visit(cell, sum, heatmap value) for each of the thread's cells; loads are unrolled by U.
template <typename T, typename Visit>
__device__ __forceinline__ void for_each_cell(const SummedMap<T>& map, Pointer<const T> heatmap, const Visit& visit) {
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
        visit(map.cell(i), sum[u], h[u]);
      }
    }
  }
}

// Called by all threads of the sample's last block. partial_sums [blocks, 2], for All: each block's sums of a - pivot
// and of its square. If `heatmap` is output.plane, it is
// overwritten with the derivative, cell by cell by the same thread.
template <bool All, typename S, typename T>
__device__ void score_map(const Layer<S>& layer, const PriorInputs<T>& prior, const LossOutput<T>& output,
                          const MapShared<S>& shared, int64_t sample, T pivot, const SummedMap<T>& map,
                          Pointer<const T> heatmap, Pointer<const double> partial_sums, int blocks) {
  const int cells = layer.cells;
  double first_sums[3] = {0.0, 0.0, prior.dense ? 0.0 : static_cast<double>(shared.valid_landmarks[threadIdx.x])};
  double peak[1] = {-static_cast<double>(INFINITY)};
  for_each_cell(map, heatmap, [&](int, double m, double h) {
    first_sums[0] += m;
    first_sums[1] += h;
    peak[0] = Maximum()(peak[0], h);
  });
  block_reduce<3>(first_sums, shared.double_scratch, Sum());
  if (prior.normalize == Normalize::peak) {
    block_reduce<1>(peak, shared.double_scratch, Maximum());
  }
  const double mean_m = first_sums[0] / cells, total_h = first_sums[1], mean_h = total_h / cells;
  const bool annotated = prior.dense || first_sums[2] > 0.0;
  double sums[3] = {0.0, 0.0, 0.0};
  for_each_cell(map, heatmap, [&](int, double m, double h) {
    sums[0] += (m - mean_m) * (m - mean_m);
    sums[1] += (h - mean_h) * (h - mean_h);
    sums[2] += (m - mean_m) * (h - mean_h);
  });
  block_reduce<3>(sums, shared.double_scratch, Sum());
  double element_sums[2] = {0.0, 0.0};
  if constexpr (All) {
    for (int block = threadIdx.x; block < blocks; block += blockDim.x) {
      element_sums[0] += partial_sums[2 * block];
      element_sums[1] += partial_sums[2 * block + 1];
    }
    block_reduce<2>(element_sums, shared.double_scratch, Sum());
  }

  if (threadIdx.x == 0) {
    // A map is scored as the mean over its n channels. "all" has the same mean and covariance, but the variance of all
    // elements.
    const double share = 1.0 / layer.count;
    const double terms = All ? static_cast<double>(layer.count) * cells : static_cast<double>(cells);
    const PriorScale scale = prior_scale(prior, sample, {total_h, peak[0], mean_h, sums[1] / cells}, annotated, terms);
    double offset = mean_m * share, variance = sums[0] / cells * share * share;
    if constexpr (All) {
      offset = element_sums[0] / terms;
      variance = element_sums[1] / terms - offset * offset;
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
      value += curve;  // compensates for the rounding of the mean to T in curve * (a - mean)
    } else {
      value = slope * (value + curve * (m - mean_m));
    }
    plane[cell] = weight == 0.0 ? T(0) : clamped<T>(value);
  });
  finish_sample(output, sample, score, weight, shared.double_scratch, shared.flag);
}

}  // namespace pal_fast::cuda

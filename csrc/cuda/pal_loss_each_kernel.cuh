// The forward of the strategy "each", in one launch. A block takes whole channels of a sample:
//   1. it draws the sample's heatmap for itself, a chunk of cells at a time (nearly always all of them), while L2
//      fetches the first tile;
//   2. tiles of whole channels go through shared memory, where a team of threads a channel takes its moments in two
//      passes;
//   3. a thread a channel makes scores of moments;
//   4. the last block of the sample adds up its scores, the last of the batch reduces.
#pragma once

#include "pal_loss_channel_moments.cuh"
#include "pal_loss_each_tile.cuh"
#include "pal_loss_score.cuh"

namespace pal_fast::cuda {

template <typename S>
struct EachShared {
  using T = typename Computing<S>::type;

  Pointer<T> tile;          // [channels_at_once, pitch], and a vector at either end
  Pointer<T> factors;       // [DRAWING_ELEMENTS], in the same place
  Pointer<T> heatmap;       // [chunk]
  Pointer<double> moments;  // [channels_per_split, CHANNEL_MOMENTS]
  Pointer<T> team_sums;     // [TEAM_SUMS * MOST_WARPS]
  Pointer<double> doubles;  // [2 * MOST_WARPS]
  Pointer<double> result;   // [4]
  Pointer<int> integers;    // [MOST_WARPS]
  Pointer<unsigned> flag;

  [[nodiscard]] static __host__ __device__ int64_t tile_elements(int channels_at_once, int pitch) {
    const int64_t elements = static_cast<int64_t>(channels_at_once) * pitch + 2 * VECTOR<S>;
    return elements > DRAWING_ELEMENTS ? elements : DRAWING_ELEMENTS;
  }

  __device__ explicit EachShared(const EachSweep& sweep) {
    SharedLayout shared;
    tile = factors = shared.take<T>(tile_elements(sweep.channels_at_once, sweep.pitch));
    heatmap = shared.take<T>(sweep.chunk);
    moments = shared.take<double>(sweep.channels_per_split * CHANNEL_MOMENTS);
    team_sums = shared.take<T>(TEAM_SUMS * MOST_WARPS);
    doubles = shared.take<double>(2 * MOST_WARPS);
    result = shared.take<double>(4);
    integers = shared.take<int>(MOST_WARPS);
    flag = shared.take<unsigned>(1);
  }

  // The same, on the host.
  [[nodiscard]] static int64_t bytes(const EachSweep& sweep) {
    SharedLayout shared;
    shared.add(tile_elements(sweep.channels_at_once, sweep.pitch), sizeof(T));
    shared.add(sweep.chunk, sizeof(T));
    shared.add(sweep.channels_per_split * CHANNEL_MOMENTS, sizeof(double));
    shared.add(TEAM_SUMS * MOST_WARPS, sizeof(T));
    shared.add(2 * MOST_WARPS, sizeof(double));
    shared.add(4, sizeof(double));
    shared.add(MOST_WARPS, sizeof(int));
    shared.add(1, sizeof(unsigned));
    return shared.bytes();
  }
};

// Stage 1: the moments of the whole heatmap; its last chunk stays in shared.heatmap. Each chunk's moments are exact to
// rounding, and merged as Chan et al. merge them.
template <typename S, typename T>
[[nodiscard]] __device__ PriorMoments heatmap_moments(const PriorInputs<T>& prior, const EachShared<S>& shared,
                                                      const EachSweep& sweep, int64_t sample, int cells) {
  PriorMoments all{0.0, -static_cast<double>(INFINITY), 0.0, 0.0};
  double squares = 0.0;
  for (int begin = 0; begin < cells; begin += sweep.chunk) {
    const int end = min(begin + sweep.chunk, cells);
    prior.fill(sample, cells, begin, end, shared.heatmap, shared.factors);
    double sum[1] = {0.0}, peak[1] = {-static_cast<double>(INFINITY)};
    for (int i = threadIdx.x; i < end - begin; i += blockDim.x) {
      const double h = shared.heatmap[i];
      sum[0] += h;
      peak[0] = Maximum()(peak[0], h);
    }
    reduce_block<1>(sum, shared.doubles, Sum());
    if (prior.normalize == Normalize::peak) {
      reduce_block<1>(peak, shared.doubles, Maximum());
      all.peak = Maximum()(all.peak, peak[0]);
    }
    const double count = end - begin, mean = sum[0] / count;
    double square[1] = {0.0};
    for (int i = threadIdx.x; i < end - begin; i += blockDim.x) {
      const double h = shared.heatmap[i] - mean;
      square[0] += h * h;
    }
    reduce_block<1>(square, shared.doubles, Sum());
    const double delta = mean - all.mean, share = count / end;
    squares += square[0] + delta * delta * begin * share;
    all.mean += delta * share;
    all.total += sum[0];
  }
  all.variance = squares / cells;
  return all;
}

template <typename S, bool ChannelsLast>
__global__ void __launch_bounds__(MOST_THREADS, resident_each_blocks(sizeof(S)))
    each_forward_kernel(const Layer<S> layer, const PriorInputs<typename Computing<S>::type> prior,
                        const LossOutput<typename Computing<S>::type> output,
                        const Pointer<double> totals,  // [B, splits]: the blocks' scores
                        const EachSweep sweep) {
  using T = typename Computing<S>::type;
  const int cells = layer.cells;
  const int64_t sample = blockIdx.x / sweep.splits;
  const int split = blockIdx.x % sweep.splits;
  const int first_channel = split * sweep.channels_per_split;
  const int last_channel = min(first_channel + sweep.channels_per_split, layer.count);
  const int64_t begin = sample * layer.sample_elements();
  const EachShared<S> shared(sweep);

  // 1. The heatmap.
  prefetch_tile<ChannelsLast>(layer, begin, first_channel, min(first_channel + sweep.channels_at_once, last_channel), 0,
                              sweep.chunk);
  const PriorMoments heatmap = heatmap_moments(prior, shared, sweep, sample, cells);
  const bool annotated = prior.dense || valid_landmarks(prior.gaussians, sample, shared.integers) > 0;
  if (threadIdx.x == 0) {
    const PriorScale scale = prior_scale(prior, sample, heatmap, annotated, static_cast<double>(cells));
    shared.result[0] = scale.weight;
    shared.result[1] = scale.inverse;
    shared.result[2] = scale.scale;
  }
  __syncthreads();
  const double weight = shared.result[0], inverse = shared.result[1], scale = shared.result[2];

  // 2. Moments of every channel, chunk by chunk.
  const int lanes = sweep.lanes, lane = static_cast<int>(threadIdx.x) % lanes;
  const int team = static_cast<int>(threadIdx.x) / lanes;
  // Then every channel, and every chunk of it, is a whole number of vectors.
  const bool vectors = !ChannelsLast && cells % VECTOR<T> == 0;
  for (int cell = 0; cell < cells; cell += sweep.chunk) {
    const int end = min(cell + sweep.chunk, cells), length = end - cell;
    if (sweep.chunks > 1) {
      prior.fill(sample, cells, cell, end, shared.heatmap, shared.factors);
    }
    double heatmap_total[1] = {0.0};
    for (int i = threadIdx.x; i < length; i += blockDim.x) {
      const T hc = bounded<T>((shared.heatmap[i] - heatmap.mean) * inverse);
      shared.heatmap[i] = hc;
      heatmap_total[0] += hc;
      if (split == 0) {
        output.plane[sample * cells + cell + i] = weight == 0.0 ? T(0) : hc;
      }
    }
    if (sweep.chunks > 1) {
      reduce_block<1>(heatmap_total, shared.doubles, Sum());
    }
    for (int channel = first_channel; channel < last_channel; channel += sweep.channels_at_once) {
      const int last = min(channel + sweep.channels_at_once, last_channel);
      __syncthreads();  // the tile, or the factors in its place, may still be read
      const int from = fill_tile<ChannelsLast>(layer, shared.tile, sweep, begin, channel, last, cell, end);
      __syncthreads();
      const int c = channel + team;
      const bool there = c < last;
      const Pointer<const T> row = shared.tile + (from + (there ? team * sweep.pitch : 0));
      const TeamMoments<T> moments =
          team_moments<T>(row, shared.heatmap, there ? length : 0, vectors, lane, lanes, shared.team_sums);
      if (there && lane == 0) {
        add_moments<T>(moments, length, cell == 0, heatmap_total[0],
                       shared.moments + CHANNEL_MOMENTS * (c - first_channel));
      }
    }
    __syncthreads();
  }

  // 3. Each channel's score and derivative, its share 1/n of the sample's score included.
  const double share = 1.0 / layer.count;
  double score[1] = {0.0};
  for (int c = first_channel + threadIdx.x; c < last_channel; c += blockDim.x) {
    const Pointer<double> moments = shared.moments + CHANNEL_MOMENTS * (c - first_channel);
    const double offset = moments[1] / cells, mean = moments[0] + offset;
    Group of_channel = score_group(mean, moments[2] / cells - offset * offset, moments[3] / cells, scale, cells);
    if (weight == 0.0) {
      of_channel = {};
    }
    score[0] += of_channel.score * share;
    of_channel.slope *= share;
    output.store_coefficients(sample * layer.count + c, of_channel);
  }
  reduce_block<1>(score, shared.doubles, Sum());

  // 4. The sample's score.
  if (sweep.splits > 1) {
    if (threadIdx.x == 0) {
      totals[sample * sweep.splits + split] = score[0];
    }
    if (!last_block(output.tickets + sample, static_cast<unsigned>(sweep.splits), shared.flag)) {
      return;
    }
    score[0] = 0.0;
    for (int i = threadIdx.x; i < sweep.splits; i += blockDim.x) {
      score[0] += totals[sample * sweep.splits + i];
    }
    reduce_block<1>(score, shared.doubles, Sum());
  }
  finish_sample(output, sample, score[0], weight, shared.doubles, shared.flag);
}

}  // namespace pal_fast::cuda

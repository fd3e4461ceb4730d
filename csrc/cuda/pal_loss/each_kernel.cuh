// The forward of the strategy "each", which scores every channel, in one launch. A block takes whole channels of a
// sample:
//   1. it draws the whole heatmap of the sample, a chunk of cells at a time (nearly always all of them), while the
//      first tile is prefetched into L2;
//   2. channels pass through shared memory in tiles; a team of threads per channel computes its moments in two passes
//      over the tile, so that the layer is read once;
//   3. one thread per channel computes its score and coefficients;
//   4. the last block of the sample sums the blocks' scores, the last sample's block reduces over the batch.
#pragma once

#include "cuda/pal_loss/channel_moments.cuh"
#include "cuda/pal_loss/each_tile.cuh"
#include "cuda/pal_loss/score.cuh"
#include "cuda/shared_layout.cuh"

namespace pal_fast::cuda {

template <typename S>
struct EachShared {
  using T = typename ComputeType<S>::type;

  Pointer<T> tile;                 // [tile_channels, pitch], plus a vector at either end
  Pointer<T> factors;              // [DRAW_SCRATCH_ELEMENTS], in the same memory
  Pointer<T> heatmap;              // [chunk]
  Pointer<double> moments;         // [channels_per_split, CHANNEL_MOMENTS], by the block's tiles
  Pointer<T> team_sums;            // [TEAM_SUMS * MAX_BLOCK_WARPS]
  Pointer<double> double_scratch;  // [2 * MAX_BLOCK_WARPS]
  Pointer<double> result;          // [4]
  Pointer<unsigned> flag;

  __host__ __device__ EachShared(SharedLayout& layout, const EachSweep& sweep) {
    const int64_t elements = static_cast<int64_t>(sweep.tile_channels) * sweep.pitch + 2 * VECTOR_SIZE<S>;
    tile = factors = layout.allocate<T>(elements > DRAW_SCRATCH_ELEMENTS ? elements : DRAW_SCRATCH_ELEMENTS);
    heatmap = layout.allocate<T>(sweep.chunk);
    moments = layout.allocate<double>(sweep.channels_per_split * CHANNEL_MOMENTS);
    team_sums = layout.allocate<T>(TEAM_SUMS * MAX_BLOCK_WARPS);
    double_scratch = layout.allocate<double>(2 * MAX_BLOCK_WARPS);
    result = layout.allocate<double>(4);
    flag = layout.allocate<unsigned>(1);
  }
};

// The heatmap's moments, and whether the sample can be scored at all: a heatmap was given, or a valid landmark.
struct SamplePrior {
  PriorMoments moments;
  bool annotated;
};

// Step 1: the moments of the whole heatmap; its last chunk stays in shared.heatmap. Two passes per chunk, and chunks
// are merged as by Chan, Golub and LeVeque.
template <typename S, typename T>
[[nodiscard]] __device__ SamplePrior heatmap_moments(const PriorInputs<T>& prior, const EachShared<S>& shared,
                                                     const EachSweep& sweep, int64_t sample, int cells) {
  PriorMoments all{0.0, -static_cast<double>(INFINITY), 0.0, 0.0};
  double squares = 0.0;
  const int valid_landmarks = prior.dense ? 0 : valid_landmarks_of_thread(prior.gaussians, sample);
  bool annotated = static_cast<bool>(prior.dense);
  for (int begin = 0; begin < cells; begin += sweep.chunk) {
    const int end = min(begin + sweep.chunk, cells);
    prior.fill(sample, cells, begin, end, shared.heatmap, shared.factors);
    double sum[2] = {0.0, static_cast<double>(valid_landmarks)}, peak[1] = {-static_cast<double>(INFINITY)};
    for (int i = threadIdx.x; i < end - begin; i += blockDim.x) {
      const double h = shared.heatmap[i];
      sum[0] += h;
      peak[0] = Maximum()(peak[0], h);
    }
    block_reduce<2>(sum, shared.double_scratch, Sum());
    annotated = annotated || sum[1] > 0.0;
    if (prior.normalize == Normalize::peak) {
      block_reduce<1>(peak, shared.double_scratch, Maximum());
      all.peak = Maximum()(all.peak, peak[0]);
    }
    const double count = end - begin, mean = sum[0] / count;
    double square[1] = {0.0};
    for (int i = threadIdx.x; i < end - begin; i += blockDim.x) {
      const double h = shared.heatmap[i] - mean;
      square[0] += h * h;
    }
    block_reduce<1>(square, shared.double_scratch, Sum());
    const double delta = mean - all.mean, share = count / end;
    squares += square[0] + delta * delta * begin * share;
    all.mean += delta * share;
    all.total += sum[0];
  }
  all.variance = squares / cells;
  return {all, annotated};
}

template <typename S, bool ChannelsLast>
__global__ void __launch_bounds__(MAX_BLOCK_THREADS, resident_each_blocks(sizeof(S)))
    each_forward_kernel(const Layer<S> layer, const PriorInputs<typename ComputeType<S>::type> prior,
                        const LossOutput<typename ComputeType<S>::type> output,
                        const Pointer<double> partial_sums,  // [B, splits]: the blocks' scores
                        const EachSweep sweep) {
  using T = typename ComputeType<S>::type;
  const int cells = layer.cells;
  const int64_t sample = blockIdx.x / sweep.splits;
  const int split = blockIdx.x % sweep.splits;
  const int64_t begin = sample * layer.sample_elements();
  const auto shared = allocate_shared<EachShared<S>>(sweep);

  // 1. The heatmap.
  const int first_channel = split * sweep.tile_channels;
  prefetch_tile<ChannelsLast>(layer, begin, first_channel, min(first_channel + sweep.tile_channels, layer.count), 0,
                              sweep.chunk);
  const SamplePrior heatmap = heatmap_moments(prior, shared, sweep, sample, cells);
  if (threadIdx.x == 0) {
    const PriorScale scale = prior_scale(prior, sample, heatmap.moments, heatmap.annotated, static_cast<double>(cells));
    shared.result[0] = scale.weight;
    shared.result[1] = scale.inverse;
    shared.result[2] = scale.scale;
  }
  __syncthreads();
  const double weight = shared.result[0], inverse = shared.result[1], scale = shared.result[2];

  // 2. The moments of every channel, chunk by chunk and tile by tile.
  const int lanes = sweep.lanes, lane = static_cast<int>(threadIdx.x) % lanes;
  const int team = static_cast<int>(threadIdx.x) / lanes;
  // Whether every channel, and every chunk of it, is a whole number of vectors.
  const bool vectors = !ChannelsLast && cells % VECTOR_SIZE<T> == 0;
  for (int cell = 0; cell < cells; cell += sweep.chunk) {
    const int end = min(cell + sweep.chunk, cells), length = end - cell;
    if (sweep.chunks > 1) {
      prior.fill(sample, cells, cell, end, shared.heatmap, shared.factors);
    }
    double heatmap_total[1] = {0.0};
    for (int i = threadIdx.x; i < length; i += blockDim.x) {
      const T hc = clamped<T>((shared.heatmap[i] - heatmap.moments.mean) * inverse);
      shared.heatmap[i] = hc;
      heatmap_total[0] += hc;
      if (split == 0) {
        output.plane[sample * cells + cell + i] = weight == 0.0 ? T(0) : hc;
      }
    }
    if (sweep.chunks > 1) {
      block_reduce<1>(heatmap_total, shared.double_scratch, Sum());
    }
    int slot = team;  // of the team's channel in shared.moments
    for (int tile = split; tile < sweep.tiles; tile += sweep.splits, slot += sweep.tile_channels) {
      const int channel = tile * sweep.tile_channels, last = min(channel + sweep.tile_channels, layer.count);
      __syncthreads();  // the tile, or the factors in the same memory, may still be read
      const int tile_begin = fill_tile<ChannelsLast>(layer, shared.tile, sweep, begin, channel, last, cell, end);
      __syncthreads();
      const bool valid = channel + team < last;
      const Pointer<const T> row = shared.tile + (tile_begin + (valid ? team * sweep.pitch : 0));
      const TeamMoments<T> moments =
          team_moments<T>(row, shared.heatmap, valid ? length : 0, vectors, lane, lanes, shared.team_sums);
      if (valid && lane == 0) {
        add_moments<T>(moments, length, cell == 0, heatmap_total[0], shared.moments + CHANNEL_MOMENTS * slot);
      }
    }
    __syncthreads();
  }

  // 3. Each channel's score and derivative, times its share 1/n of the sample's score.
  const double share = 1.0 / layer.count;
  double score[1] = {0.0};
  for (int slot = threadIdx.x; slot < sweep.channels_per_split; slot += blockDim.x) {
    const int tile = split + slot / sweep.tile_channels * sweep.splits;
    const int c = tile < sweep.tiles ? tile * sweep.tile_channels + slot % sweep.tile_channels : layer.count;
    if (c >= layer.count) {
      break;
    }
    const Pointer<double> moments = shared.moments + CHANNEL_MOMENTS * slot;
    const double offset = moments[1] / cells, mean = moments[0] + offset;
    Group channel_score = score_group(mean, moments[2] / cells - offset * offset, moments[3] / cells, scale, cells);
    if (weight == 0.0) {
      channel_score = {};
    }
    score[0] += channel_score.score * share;
    channel_score.slope *= share;
    output.store_coefficients(sample * layer.count + c, channel_score);
  }
  block_reduce<1>(score, shared.double_scratch, Sum());

  // 4. The sample's score.
  if (sweep.splits > 1) {
    if (threadIdx.x == 0) {
      partial_sums[sample * sweep.splits + split] = score[0];
    }
    if (!is_last_block(output.tickets + sample, static_cast<unsigned>(sweep.splits), shared.flag)) {
      return;
    }
    score[0] = 0.0;
    for (int i = threadIdx.x; i < sweep.splits; i += blockDim.x) {
      score[0] += partial_sums[sample * sweep.splits + i];
    }
    block_reduce<1>(score, shared.double_scratch, Sum());
  }
  finish_sample(output, sample, score[0], weight, shared.double_scratch, shared.flag);
}

}  // namespace pal_fast::cuda

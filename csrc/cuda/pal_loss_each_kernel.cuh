// The forward of the strategy "each", in one launch. A block takes whole channels of a sample:
//   1. it draws the sample's heatmap for itself, a chunk of cells at a time (nearly always all of them), while L2
//      fetches the first tile;
//   2. tiles of whole channels go through shared memory, where a team of threads a channel takes its moments in two
//      passes;
//   3. a thread a channel makes scores of moments;
//   4. the last block of the sample adds up its scores, the last of the batch reduces.
#pragma once

#include "pal_loss_channel_moments.cuh"
#include "pal_loss_score.cuh"
#include "pal_loss_sweep.cuh"

namespace pal_fast::cuda {

// An EachPlan, as kernels take it.
struct EachSweep {
  int chunk, chunks, channels_at_once, lanes, pitch, channels_per_split, splits;
};

[[nodiscard]] inline EachSweep each_sweep(const EachPlan& plan, int64_t cells) {
  return {static_cast<int>(plan.chunk),
          static_cast<int>(ceil_div(cells, plan.chunk)),
          static_cast<int>(plan.channels_at_once),
          static_cast<int>(plan.lanes),
          static_cast<int>(plan.pitch),
          static_cast<int>(plan.channels_per_split),
          static_cast<int>(plan.splits)};
}

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
    // Every thread reads the cells that it wrote.
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

// Has L2 fetch what fill_tile() will load.
template <bool ChannelsLast, typename S>
__device__ __forceinline__ void prefetch_tile(const Layer<S>& layer, int64_t sample_begin, int first, int last,
                                              int begin, int end) {
  constexpr int SECTOR = 32 / static_cast<int>(sizeof(S));
  const int length = end - begin;
  const int64_t from = ChannelsLast ? sample_begin + static_cast<int64_t>(begin) * layer.channels + first
                                    : sample_begin + static_cast<int64_t>(first) * layer.cells + begin;
  // A run a cell, or one of all channels.
  const int runs = ChannelsLast ? length : 1;
  const int run = ChannelsLast ? last - first : (last - first - 1) * layer.cells + length;
  const int sectors = (run + SECTOR - 1) / SECTOR + 1;  // a run need not start with a sector
  for (int i = threadIdx.x; i < runs * sectors; i += blockDim.x) {
    const int64_t at = from + (ChannelsLast ? static_cast<int64_t>(i / sectors) * layer.channels : 0) +
                       min((ChannelsLast ? i % sectors : i) * SECTOR, run - 1);
    if (layer.activation) {
      prefetch(layer.activation + at);
    }
    if (layer.gradient) {
      prefetch(layer.gradient + at);
    }
  }
}

// Puts the attribution of channels [first, last), cells [begin, end), into the tile. Returns where the first channel's
// first cell lies; channels lie sweep.pitch apart.
template <bool ChannelsLast, typename S, typename T>
[[nodiscard]] __device__ __forceinline__ int fill_tile(const Layer<S>& layer, Pointer<T> tile, const EachSweep& sweep,
                                                       int64_t sample_begin, int first, int last, int begin, int end) {
  constexpr int V = VECTOR<S>, U = 2;
  const int threads = blockDim.x, thread = threadIdx.x;
  if constexpr (ChannelsLast) {
    const int length = end - begin;
    if (layer.aligned && layer.channels % V == 0) {
      // A vector is V channels of a cell; `first` is a multiple of V.
      const int across = (last - first + V - 1) / V, total = across * length;
      for (int index = thread; index < total; index += U * threads) {
        int64_t at[U];
        bool there[U];
        int to[U];
        T a[U][V];
#pragma unroll
        for (int u = 0; u < U; ++u) {
          const int i = index + u * threads, cell = i / across, vector = i % across;
          there[u] = i < total;
          at[u] = sample_begin + static_cast<int64_t>(begin + cell) * layer.channels + first + vector * V;
          to[u] = vector * V * sweep.pitch + cell;
        }
        load_attribution<true>(layer, at, there, a);
#pragma unroll
        for (int u = 0; u < U; ++u) {
#pragma unroll
          for (int e = 0; e < V; ++e) {
            if (there[u]) {
              tile[to[u] + e * sweep.pitch] = a[u][e];
            }
          }
        }
      }
    } else {
      const int across = last - first;
      for (int index = thread; index < across * length; index += threads) {
        const int cell = index / across, channel = index % across;
        const int64_t at = sample_begin + static_cast<int64_t>(begin + cell) * layer.channels + first + channel;
        tile[channel * sweep.pitch + cell] = layer.attribution(at);
      }
    }
    return 0;
  } else {
    // One flat run: several channels have all their cells in it, and a part of a map has one channel.
    const int64_t from = sample_begin + static_cast<int64_t>(first) * layer.cells + begin;
    const int64_t to = from + static_cast<int64_t>(last - first - 1) * layer.cells + (end - begin);
    const int64_t origin = from / V * V;
    int64_t vectors = (from + V - 1) / V * V, vectors_end = to / V * V;
    if (!layer.aligned || vectors_end <= vectors) {
      vectors = vectors_end = to;
    }
    for (int64_t i = vectors + thread * V; i < vectors_end; i += U * threads * V) {
      int64_t at[U];
      bool there[U];
      T a[U][V];
#pragma unroll
      for (int u = 0; u < U; ++u) {
        at[u] = i + u * threads * V;
        there[u] = at[u] < vectors_end;
      }
      load_attribution<true>(layer, at, there, a);
#pragma unroll
      for (int u = 0; u < U; ++u) {
#pragma unroll
        for (int e = 0; e < V; e += VECTOR<T>) {
          T some[VECTOR<T>];
#pragma unroll
          for (int j = 0; j < VECTOR<T>; ++j) {
            some[j] = a[u][e + j];
          }
          if (there[u]) {
            store_vector_shared<T>(tile + (at[u] + e - origin), some);
          }
        }
      }
    }
    // Before the first whole vector and behind the last one.
    const int64_t before = vectors - from, ends = before + to - vectors_end;
    for (int64_t i = thread; i < ends; i += threads) {
      const int64_t at = i < before ? from + i : vectors_end + i - before;
      tile[at - origin] = layer.attribution(at);
    }
    return static_cast<int>(from - origin);
  }
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

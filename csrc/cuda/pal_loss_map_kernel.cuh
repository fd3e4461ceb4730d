// The forward of the strategies that sum over channels: "mean" and "half" (All = false), "all" (All = true). One
// launch:
//   1. every block sums the attribution of its share of a sample over channels;
//   2. the last block of the sample adds up the shares, scores the map against the heatmap, which it draws itself, and
//      writes the derivative of the score;
//   3. the last block of the batch reduces.
#pragma once

#include "pal_loss_score.cuh"
#include "pal_loss_sweep.cuh"

namespace pal_fast::cuda {

// Small maps are scored in shared memory, of which a launch has 48 KiB without asking, and their heatmap is nowhere
// else. The heatmap of a larger one is drawn by all of the sample's blocks, into `plane`, where the derivative then
// takes its place.
template <typename T>
[[nodiscard]] __host__ __device__ constexpr bool scored_in_shared(int64_t cells) {
  return cells <= 8192 / static_cast<int64_t>(sizeof(T));
}

// Where the arrays of a block lie: the sweep's sums make way for map and heatmap.
template <typename S>
struct MapShared {
  using T = typename Computing<S>::type;

  Pointer<T> sums;          // [threads * V]
  Pointer<T> scratch;       // [MOST_THREADS]
  Pointer<T> map;           // [cells], of a small map
  Pointer<T> heatmap;       // [cells], likewise
  Pointer<T> factors;       // [DRAWING_ELEMENTS], if there are landmarks
  Pointer<double> doubles;  // [3 * MOST_WARPS]
  Pointer<double> result;   // [8]: what one thread finds out for all
  Pointer<int> integers;    // [MOST_WARPS]
  Pointer<unsigned> flag;

  __device__ MapShared(int cells, bool small, bool landmarks, bool rows) {
    // The factors share their place with the sums.
    const int64_t sums_elements = rows ? static_cast<int64_t>(blockDim.x) * VECTOR<S> : 0;
    const int64_t elements = landmarks && DRAWING_ELEMENTS > sums_elements ? DRAWING_ELEMENTS : sums_elements;
    SharedLayout shared;
    sums = factors = shared.take<T>(elements);
    scratch = shared.take<T>(MOST_THREADS);
    map = shared.take<T>(small ? cells : 0);
    heatmap = shared.take<T>(small && landmarks ? cells : 0);
    doubles = shared.take<double>(3 * MOST_WARPS);
    result = shared.take<double>(8);
    integers = shared.take<int>(MOST_WARPS);
    flag = shared.take<unsigned>(1);
  }

  // The same, on the host.
  [[nodiscard]] static int64_t bytes(int64_t cells, bool landmarks, bool rows, int64_t threads) {
    const int64_t sums_elements = rows ? threads * VECTOR<S> : 0;
    const int64_t elements = landmarks ? std::max<int64_t>(DRAWING_ELEMENTS, sums_elements) : sums_elements;
    const bool small = scored_in_shared<T>(cells);
    SharedLayout shared;
    shared.add(elements, sizeof(T));
    shared.add(MOST_THREADS, sizeof(T));
    shared.add(small ? cells : 0, sizeof(T));
    shared.add(small && landmarks ? cells : 0, sizeof(T));
    shared.add(3 * MOST_WARPS, sizeof(double));
    shared.add(8, sizeof(double));
    shared.add(MOST_WARPS, sizeof(int));
    shared.add(1, sizeof(unsigned));
    return shared.bytes();
  }
};

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

// Stage 2, by all threads of one block. The map holds sums of a - pivot; totals [blocks, 2]: sums of that and of its
// square over shares of the sample, for All.
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

template <typename S, bool ChannelsLast, bool All>
__global__ void __launch_bounds__(MOST_THREADS, resident_map_blocks(All, sizeof(S)))
    map_forward_kernel(const Layer<S> layer, const PriorInputs<typename Computing<S>::type> prior,
                       const LossOutput<typename Computing<S>::type> output,
                       const Pointer<typename Computing<S>::type> shares,  // [B, shares, H, W]
                       const Pointer<double> totals,                       // [B, blocks, 2], All only
                       const RowSweep rows, const CellSweep cell_sweep) {
  using T = typename Computing<S>::type;
  const int cells = layer.cells;
  const int blocks = ChannelsLast ? cell_sweep.splits : rows.splits * rows.tiles;
  const int64_t sample = blockIdx.x / blocks;
  const int part = blockIdx.x % blocks;
  const bool small = scored_in_shared<T>(cells), landmarks = !prior.dense;
  const int64_t begin = sample * layer.sample_elements();
  const MapShared<S> shared(cells, small, landmarks, !ChannelsLast);

  // A large map's heatmap, this block's part of it.
  if (landmarks && !small) {
    const auto bound = [&](int64_t of) { return static_cast<int>(of * cells / blocks); };
    const int first = bound(part), last = bound(part + 1);
    if (first < last) {
      prior.draw_cells(sample, first, last, output.plane + (sample * cells + first), shared.factors);
    }
    __syncthreads();  // the sums take the place of the factors
  }

  // 1. The sweep.
  const int64_t end = begin + static_cast<int64_t>(layer.count) * cells;  // of NCHW's channels that take part
  [[maybe_unused]] const ThreadRows mine(rows, begin, VECTOR<S>, ChannelsLast ? 0 : part / rows.tiles,
                                         ChannelsLast ? 0 : part % rows.tiles);
  const int first_cell = part * cell_sweep.cells_per_split;
  const int last_cell = min(first_cell + cell_sweep.cells_per_split, cells);
  if constexpr (ChannelsLast) {
    prefetch_cells(layer, begin, cell_sweep.lanes, first_cell, last_cell);
  } else {
    prefetch_rows(layer, mine, begin, end);
  }
  const T pivot = pivot_of(layer, begin, ChannelsLast ? begin + layer.count : end);
  Squares squares;
  SummedMap<T> map{shared.map, cells, 0};
  if constexpr (ChannelsLast) {
    const Pointer<T> of_sample = shares + sample * cells;
    sweep_cells<All>(layer, begin, cell_sweep.lanes, first_cell, last_cell, pivot,
                     small && blocks == 1 ? shared.map : of_sample, squares);
    if (!small) {
      map.sums = of_sample;
    }
  } else {
    constexpr int V = VECTOR<S>;
    const int split = part / rows.tiles, tile = part % rows.tiles;
    const int offset = static_cast<int>(begin % V);
    T sum[V] = {};
    sweep_rows<All>(layer, mine, begin, end, pivot, sum, squares);
    if (rows.tiles == 1) {
      // The block has whole rows: it folds them to a map of its own.
      if (mine.active) {
#pragma unroll
        for (int e = 0; e < V; ++e) {
          shared.sums[threadIdx.x * V + e] = sum[e];
        }
      }
      __syncthreads();
      const int rotation = offset % cells;
      const Pointer<T> of_split =
          blocks == 1 ? shared.map : shares + (sample * rows.splits + split) * static_cast<int64_t>(cells);
      fold<T>(shared.sums, rows.rows_at_once * rows.period, cells, shared.scratch, [&](int index, T value) {
        of_split[index < rotation ? index - rotation + cells : index - rotation] = value;
      });
    } else {
      const Pointer<T> of_split = shares + (sample * rows.splits + split) * rows.period;
      if (mine.active) {
        const int64_t column = static_cast<int64_t>(tile) * rows.columns + threadIdx.x;
#pragma unroll
        for (int e = 0; e < V; e += VECTOR<T>) {
          T some[VECTOR<T>];
#pragma unroll
          for (int i = 0; i < VECTOR<T>; ++i) {
            some[i] = sum[e + i];
          }
          store_vector<T>(of_split + (column * V + e), some);
        }
      }
      map.rotation = offset % cells;
      if (!small) {
        map.sums = shares + sample * rows.splits * rows.period;
      }
    }
  }
  if constexpr (All) {
    double sums[2] = {squares.sum, squares.squares};
    reduce_block<2>(sums, shared.doubles, Sum());
    if (threadIdx.x == 0) {
      totals[2 * (sample * blocks + part)] = sums[0];
      totals[2 * (sample * blocks + part) + 1] = sums[1];
    }
  }

  // 2. The last block of the sample goes on.
  if (blocks > 1 && !last_block(output.tickets + sample, static_cast<unsigned>(blocks), shared.flag)) {
    return;
  }
  __syncthreads();
  if (!ChannelsLast) {
    // One after the other in memory: the splits' maps, or what is longer than a map, their rows.
    const int64_t total = rows.tiles == 1 ? static_cast<int64_t>(rows.splits) * cells : rows.splits * rows.period;
    if (blocks > 1) {
      const Pointer<T> of_sample = shares + sample * total;
      const Pointer<T> to = small ? shared.map : of_sample;  // in place: every index is read and written by one thread
      fold<T>(of_sample, total, cells, shared.scratch, [&](int index, T value) { to[index] = value; });
    }
  } else if (blocks > 1 && small) {
    fold<T>(shares + sample * cells, cells, cells, shared.scratch,
            [&](int index, T value) { shared.map[index] = value; });
  }
  Pointer<const T> heatmap;
  if (!landmarks) {
    heatmap = prior.dense + sample * cells;
  } else if (small) {
    prior.draw_cells(sample, 0, cells, shared.heatmap, shared.factors);
    heatmap = shared.heatmap;
  } else {
    heatmap = output.plane + sample * cells;
  }
  __syncthreads();
  score_map<All>(layer, prior, output, shared, sample, pivot, map, heatmap,
                 Pointer<const double>(totals) + 2 * sample * blocks, blocks);
}

}  // namespace pal_fast::cuda

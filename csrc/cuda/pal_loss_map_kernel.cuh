// The forward of the strategies that sum over channels: "mean" and "half" (All = false), "all" (All = true). One
// launch:
//   1. every block draws its part of the sample's heatmap and sums the attribution of its share over channels;
//   2. the last block of the sample adds up the shares, scores the map against the heatmap and writes the derivative of
//      the score;
//   3. the last block of the batch reduces.
#pragma once

#include "pal_loss_cell_sweep.cuh"
#include "pal_loss_map_score.cuh"
#include "pal_loss_row_sweep.cuh"

namespace pal_fast::cuda {

template <typename S, bool ChannelsLast, bool All>
__global__ void __launch_bounds__(MOST_THREADS, resident_map_blocks(All, sizeof(S)))
    map_forward_kernel(const Layer<S> layer, const PriorInputs<typename Computing<S>::type> prior,
                       const LossOutput<typename Computing<S>::type> output,
                       const Pointer<typename Computing<S>::type> shares,  // [B, shares, H, W]
                       const Pointer<double> totals,                       // [B, blocks, 2], All only
                       const RowSweep rows, const CellSweep cell_sweep) {
  using T = typename Computing<S>::type;
  constexpr int AT_ONCE = ChannelsLast ? 1 : 4;  // its sweep leaves no register for more
  const int cells = layer.cells;
  const int blocks = ChannelsLast ? cell_sweep.splits : rows.splits * rows.tiles;
  const int64_t sample = blockIdx.x / blocks;
  const int part = blockIdx.x % blocks;
  const bool small = summed_in_shared<T>(cells), landmarks = !prior.dense;
  const int64_t begin = sample * layer.sample_elements();
  const MapShared<S> shared(cells, small, landmarks, !ChannelsLast);

  // 1. What the sweep reads first is on its way while the heatmap is drawn, into the plane, where its derivative will
  // take its place.
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
  if (landmarks) {
    const auto bound = [&](int of) { return static_cast<int>(static_cast<int64_t>(of) * cells / blocks); };
    const int first = bound(part), last = bound(part + 1);
    if (first < last) {
      prior.template draw_cells<AT_ONCE>(sample, first, last, output.plane + (sample * cells + first), shared.factors);
    }
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
  const Pointer<const T> heatmap = (landmarks ? Pointer<const T>(output.plane) : prior.dense) + sample * cells;
  __syncthreads();
  score_map<All>(layer, prior, output, shared, sample, pivot, map, heatmap,
                 Pointer<const double>(totals) + 2 * sample * blocks, blocks);
}

}  // namespace pal_fast::cuda

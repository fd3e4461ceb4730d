// The forward of the strategies that sum over channels: "mean" and "half" (All = false), "all" (All = true). Several
// blocks share a sample; one launch does everything:
//   1. each block draws its part of the sample's heatmap into output.plane and sums the attribution of its part of the
//      layer over channels: NCHW by row sweeps (row_sweep.cuh), NHWC by cell sweeps (cell_sweep.cuh).
//      Partial maps go to the workspace, or to shared memory if the sample has one block and its map fits;
//   2. the last block of the sample to arrive sums the partial maps, scores the map against the heatmap and overwrites
//      output.plane with the derivative of the score;
//   3. the last sample's last block reduces the scores over the batch.
// Sums are shifted by a pivot (layer.cuh) and have a fixed order, so that results do not depend on scheduling.
#pragma once

#include "cuda/pal_loss/cell_sweep.cuh"
#include "cuda/pal_loss/map_score.cuh"
#include "cuda/pal_loss/row_sweep.cuh"

namespace pal_fast::cuda {

template <typename S, bool ChannelsLast, bool All>
__global__ void __launch_bounds__(MAX_BLOCK_THREADS, resident_map_blocks(All, sizeof(S)))
    map_forward_kernel(const Layer<S> layer, const PriorInputs<typename ComputeType<S>::type> prior,
                       const LossOutput<typename ComputeType<S>::type> output,
                       const Pointer<typename ComputeType<S>::type> partial_maps,  // [LossWorkspace::partial_maps]
                       const Pointer<double> partial_sums,                         // [B, blocks, 2], All only
                       const RowSweep rows, const CellSweep cell_sweep) {
  using T = typename ComputeType<S>::type;
  constexpr int DRAW_UNROLL = ChannelsLast ? 1 : 4;  // the cell sweep leaves no registers for more
  const int cells = layer.cells;
  const int blocks = ChannelsLast ? cell_sweep.splits : rows.splits * rows.tiles;
  const int64_t sample = blockIdx.x / blocks;
  const int part = blockIdx.x % blocks;
  const bool in_shared = map_fits_shared<T>(cells), landmarks = !prior.dense;
  const int64_t begin = sample * layer.sample_elements();
  const auto shared = allocate_shared<MapShared<S>>(cells, landmarks, !ChannelsLast, blockDim.x);

  // 1. The sweep's first loads are prefetched while the heatmap is drawn.
  const int64_t end = begin + static_cast<int64_t>(layer.count) * cells;  // NCHW: of the channels that take part
  [[maybe_unused]] const ThreadRows thread_rows(rows, begin, VECTOR_SIZE<S>, ChannelsLast ? 0 : part / rows.tiles,
                                                ChannelsLast ? 0 : part % rows.tiles);
  const int first_cell = part * cell_sweep.cells_per_split;
  const int last_cell = min(first_cell + cell_sweep.cells_per_split, cells);
  if constexpr (ChannelsLast) {
    prefetch_cells(layer, begin, cell_sweep.lanes, first_cell, last_cell);
  } else {
    prefetch_rows(layer, thread_rows, begin, end);
  }
  if (landmarks) {
    const auto first_cell_of = [&](int i) { return static_cast<int>(static_cast<int64_t>(i) * cells / blocks); };
    const int first = first_cell_of(part), last = first_cell_of(part + 1);
    if (first < last) {
      prior.template draw_cells<DRAW_UNROLL>(sample, first, last, output.plane + (sample * cells + first),
                                             shared.factors);
    }
  }
  const T pivot = pivot_of(layer, begin, ChannelsLast ? begin + layer.count : end);
  MomentSums moments;
  SummedMap<T> map{shared.map, cells, 0};
  if constexpr (ChannelsLast) {
    const Pointer<T> sample_maps = partial_maps + sample * cells;
    sweep_cells<All>(layer, begin, cell_sweep.lanes, first_cell, last_cell, pivot,
                     in_shared && blocks == 1 ? shared.map : sample_maps, moments);
    if (!in_shared) {
      map.sums = sample_maps;
    }
  } else {
    constexpr int V = VECTOR_SIZE<S>;
    const int split = part / rows.tiles, tile = part % rows.tiles;
    const int offset = static_cast<int>(begin % V);
    T sum[V] = {};
    sweep_rows<All>(layer, thread_rows, begin, end, pivot, sum, moments);
    if (rows.tiles == 1) {
      // The block has whole rows: it sums their columns to a map of its own.
      if (thread_rows.active) {
#pragma unroll
        for (int e = 0; e < V; ++e) {
          shared.sums[threadIdx.x * V + e] = sum[e];
        }
      }
      __syncthreads();
      const int rotation = offset % cells;
      const Pointer<T> split_map =
          blocks == 1 ? shared.map : partial_maps + (sample * rows.splits + split) * static_cast<int64_t>(cells);
      sum_maps<T>(shared.sums, rows.rows_per_step * rows.row_elements, cells, shared.scratch, [&](int index, T value) {
        split_map[index < rotation ? index - rotation + cells : index - rotation] = value;
      });
    } else {
      const Pointer<T> split_map = partial_maps + (sample * rows.splits + split) * rows.row_elements;
      if (thread_rows.active) {
        const int64_t column = static_cast<int64_t>(tile) * rows.tile_columns + threadIdx.x;
#pragma unroll
        for (int e = 0; e < V; e += VECTOR_SIZE<T>) {
          T vector[VECTOR_SIZE<T>];
#pragma unroll
          for (int i = 0; i < VECTOR_SIZE<T>; ++i) {
            vector[i] = sum[e + i];
          }
          store_vector<T>(split_map + (column * V + e), vector);
        }
      }
      map.rotation = offset % cells;
      if (!in_shared) {
        map.sums = partial_maps + sample * rows.splits * rows.row_elements;
      }
    }
  }
  if constexpr (All) {
    double sums[2] = {moments.sum, moments.sum_of_squares};
    block_reduce<2>(sums, shared.double_scratch, Sum());
    if (threadIdx.x == 0) {
      partial_sums[2 * (sample * blocks + part)] = sums[0];
      partial_sums[2 * (sample * blocks + part) + 1] = sums[1];
    }
  }

  // 2. The last block of the sample continues.
  if (blocks > 1 && !is_last_block(output.tickets + sample, static_cast<unsigned>(blocks), shared.flag)) {
    return;
  }
  __syncthreads();
  if (!ChannelsLast) {
    // Consecutive in the workspace: the splits' maps or, if a row has several tiles, their rows, each of several maps.
    const int64_t total = rows.tiles == 1 ? static_cast<int64_t>(rows.splits) * cells : rows.splits * rows.row_elements;
    if (blocks > 1) {
      const Pointer<T> sample_maps = partial_maps + sample * total;
      // In place if not in shared memory: every index is read and written by one thread.
      const Pointer<T> to = in_shared ? shared.map : sample_maps;
      sum_maps<T>(sample_maps, total, cells, shared.scratch, [&](int index, T value) { to[index] = value; });
    }
  } else if (blocks > 1 && in_shared) {
    sum_maps<T>(partial_maps + sample * cells, cells, cells, shared.scratch,
                [&](int index, T value) { shared.map[index] = value; });
  }
  const Pointer<const T> heatmap = (landmarks ? Pointer<const T>(output.plane) : prior.dense) + sample * cells;
  __syncthreads();
  score_map<All>(layer, prior, output, shared, sample, pivot, map, heatmap,
                 Pointer<const double>(partial_sums) + 2 * sample * blocks, blocks);
}

}  // namespace pal_fast::cuda

// The forward of the strategies that sum over channels: "mean" and "half" (All = false), "all" (All = true). Several
// blocks share a sample; one launch does everything:
//   1. each block draws its part of the sample's heatmap into output.plane and sums the attribution of its part of the
//      layer over channels (NCHW: map_rows.cuh, NHWC: map_cells.cuh). Partial maps go to the workspace, or to shared
//      memory if the sample has one block and its map fits;
//   2. the last block of the sample to arrive combines the partial maps, scores the map against the heatmap and
//      overwrites output.plane with the derivative of the score;
//   3. the last sample's last block reduces the scores over the batch.
// Sums are shifted by a pivot (layer.cuh) and have a fixed order, so that results do not depend on scheduling.
#pragma once

#include <type_traits>

#include "cuda/pal_loss/map_cells.cuh"
#include "cuda/pal_loss/map_rows.cuh"
#include "cuda/pal_loss/map_score.cuh"

namespace pal_fast::cuda {

template <bool ChannelsLast>
using MapSweep = std::conditional_t<ChannelsLast, CellSweep, RowSweep>;

template <typename S, bool ChannelsLast, bool All>
__global__ void __launch_bounds__(MAX_BLOCK_THREADS, resident_map_blocks(All, sizeof(S)))
    map_forward_kernel(const Layer<S> layer, const PriorInputs<typename ComputeType<S>::type> prior,
                       const LossOutput<typename ComputeType<S>::type> output,
                       const Pointer<typename ComputeType<S>::type> partial_maps,  // [LossWorkspace::partial_maps]
                       const Pointer<double> partial_sums,                         // [B, blocks, 2], All only
                       const MapSweep<ChannelsLast> sweep) {
  using T = typename ComputeType<S>::type;
  using BlockPart = std::conditional_t<ChannelsLast, MapCells<S>, MapRows<S>>;
  const int cells = layer.cells, blocks = sweep.blocks_per_sample();
  const int64_t sample = blockIdx.x / blocks;
  const int part = blockIdx.x % blocks;
  const bool landmarks = !prior.dense;
  const auto shared = allocate_shared<MapShared<S>>(cells, landmarks, !ChannelsLast, blockDim.x);
  const BlockPart block(layer, sweep, sample, part);

  // 1. The sweep's first loads are prefetched while the heatmap is drawn.
  block.prefetch();
  if (landmarks) {
    shared.valid_landmarks[threadIdx.x] = valid_landmarks_of_thread(prior.gaussians, sample);
    const auto first_cell_of = [&](int i) { return static_cast<int>(static_cast<int64_t>(i) * cells / blocks); };
    const int first = first_cell_of(part), last = first_cell_of(part + 1);
    if (first < last) {
      prior.template draw_cells<BlockPart::DRAW_UNROLL>(sample, first, last, output.plane + (sample * cells + first),
                                                        shared.factors);
    }
  }
  const T pivot = block.pivot();
  MomentSums moments;
  block.template sum_channels<All>(shared, partial_maps, pivot, moments);
  const Pointer<double> sample_sums = partial_sums + 2 * sample * blocks;
  if constexpr (All) {
    double sums[2] = {moments.sum, moments.sum_of_squares};
    block_reduce<2>(sums, shared.double_scratch, Sum());
    if (threadIdx.x == 0) {
      sample_sums[2 * part] = sums[0];
      sample_sums[2 * part + 1] = sums[1];
    }
  }

  // 2. The last block of the sample continues.
  if (blocks > 1 && !is_last_block(output.tickets + sample, static_cast<unsigned>(blocks), shared.flag)) {
    return;
  }
  const SummedMap<T> map = block.combine(shared, partial_maps);
  const Pointer<const T> heatmap = (landmarks ? Pointer<const T>(output.plane) : prior.dense) + sample * cells;
  __syncthreads();
  score_map<All>(layer, prior, output, shared, sample, pivot, map, heatmap, Pointer<const double>(sample_sums), blocks);
}

}  // namespace pal_fast::cuda

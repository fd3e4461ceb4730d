// The launch of the heatmap's wgmma kernel; the launcher is called as in launch.cuh.
#pragma once

#include "cuda/landmark_heatmap/warpgroup_kernel.cuh"

namespace pal_fast::cuda {

template <typename Launcher>
void run_landmark_heatmap_wgmma(const HeatmapParams& params, const Launcher& launch) {
  const HeatmapProblem& problem = params.problem;
  const HeatmapTiles& tiles = params.tiles;
  const int64_t blocks = problem.batch * tiles.count();
  constexpr int MAX_STEPS = WARPGROUP_LANDMARKS / WGMMA_K, FEW_STEPS = 2;
  const auto kernel = problem.landmarks <= FEW_STEPS * WGMMA_K ? warpgroup_heatmap_kernel<FEW_STEPS>
                                                               : warpgroup_heatmap_kernel<MAX_STEPS>;
  launch(kernel, blocks, WARPGROUP_BLOCK_THREADS, shared_bytes<WarpgroupShared>(),
         gaussians_of<float>(problem, {params.landmarks, params.visible, params.weights}),
         global_array<float>(params.heatmap, problem.batch * problem.cells()),
         global_array<double>(params.divisors, blocks), global_array<unsigned>(params.tickets, problem.batch),
         problem.normalize, tiles.columns, static_cast<int>(tiles.count()),
         static_cast<int>(tiles.tiles_along_columns));
}

}  // namespace pal_fast::cuda

// As landmark_heatmap_launch.cuh, of what warpgroups draw.
#pragma once

#include "landmark_heatmap_warpgroup_kernel.cuh"

namespace pal_fast::cuda {

template <typename Launcher>
void run_landmark_heatmap_by_warpgroups(const HeatmapPass& pass, const Launcher& launch) {
  const HeatmapProblem& problem = pass.problem;
  const HeatmapTiles& tiles = pass.tiles;
  const int64_t blocks = problem.batch * tiles.count();
  constexpr int MOST_STEPS = WARPGROUP_LANDMARKS / PRODUCT_DEPTH, FEW_STEPS = 2;
  const auto kernel = problem.landmarks <= FEW_STEPS * PRODUCT_DEPTH ? warpgroup_heatmap_kernel<FEW_STEPS>
                                                                     : warpgroup_heatmap_kernel<MOST_STEPS>;
  launch(kernel, blocks, HEATMAP_WARPGROUP_THREADS, WarpgroupShared::bytes(),
         gaussians_of<float>(problem, {pass.landmarks, pass.visible, pass.weights}),
         elements<float>(pass.heatmap, problem.batch * problem.cells()), elements<double>(pass.divisors, blocks),
         elements<unsigned>(pass.tickets, problem.batch), problem.normalize, tiles.columns,
         static_cast<int>(tiles.count()), static_cast<int>(tiles.along_columns));
}

}  // namespace pal_fast::cuda

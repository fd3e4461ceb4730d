// Which of the heatmap's kernels run, on which grid. A launcher is called as
//   launch(kernel, blocks, threads, bytes of shared memory, arguments...)
// so that tests can run the same launches elsewhere.
#pragma once

#include "landmark_heatmap_backward_kernels.cuh"
#include "landmark_heatmap_drawing_kernels.cuh"
#include "landmark_heatmap_matrix_kernel.cuh"

namespace pal_fast::cuda {

template <typename T, bool Max, typename Launcher>
void forward_heatmap(const HeatmapPass& pass, const Launcher& launch) {
  const HeatmapProblem& problem = pass.problem;
  const Gaussians<T> gaussians = gaussians_of<T>(problem, {pass.landmarks, pass.visible, pass.weights});
  const Pointer<T> heatmap = elements<T>(pass.heatmap, problem.batch * problem.cells());
  if (drawn_whole(problem)) {
    launch(whole_heatmap_kernel<T>, problem.batch, MOST_THREADS, whole_map_shared<T>(), gaussians, Max, heatmap,
           problem.normalize);
    return;
  }
  const HeatmapTiles& tiles = pass.tiles;
  const int64_t blocks = problem.batch * tiles.count();
  const auto count = static_cast<int>(tiles.count()), along_columns = static_cast<int>(tiles.along_columns);
  const Pointer<double> divisors = elements<double>(pass.divisors, blocks);
  const Pointer<unsigned> tickets = elements<unsigned>(pass.tickets, problem.batch);
  if constexpr (std::is_same_v<T, float> && !Max) {
    launch(matrix_heatmap_kernel<T>, blocks, MATRIX_THREADS, MatrixShared::bytes(), gaussians, heatmap, divisors,
           tickets, problem.normalize, tiles.row_warps, tiles.columns, count, along_columns);
  } else {
    launch(tiled_heatmap_kernel<T, Max>, blocks, MOST_THREADS, tile_shared<T>(tiles.lanes), gaussians, heatmap,
           divisors, tickets, problem.normalize, tiles.lanes, count, along_columns);
  }
}

template <typename T, bool Max, typename Launcher>
void backward_heatmap(const HeatmapPass& pass, const Launcher& launch) {
  const HeatmapProblem& problem = pass.problem;
  const Gaussians<T> gaussians = gaussians_of<T>(problem, {pass.landmarks, pass.visible, pass.weights});
  const int64_t size = problem.batch * problem.cells(), points = problem.batch * problem.landmarks;
  const bool needs_raw = heatmap_needs_raw(problem);
  const Pointer<const T> grad = elements<const T>(pass.grad, size);
  const Pointer<T> raw = elements<T>(pass.raw, size);
  const Pointer<int> winner = elements<int>(pass.winner, size);
  if (needs_raw) {
    launch(raw_gradient_kernel<T>, problem.batch, MOST_THREADS, raw_gradient_shared<T>(), gaussians, Max, grad, raw,
           winner, problem.normalize);
  }
  const int64_t groups = (problem.landmarks + LANDMARKS_PER_BLOCK - 1) / LANDMARKS_PER_BLOCK;
  launch(landmark_gradient_kernel<T, Max>, problem.batch * groups, GRADIENT_THREADS, int64_t{0}, gaussians,
         needs_raw ? Pointer<const T>(raw) : grad, Pointer<const int>(winner),
         elements<T>(pass.d_landmarks, 2 * points), elements<T>(pass.d_weights, points), static_cast<int>(groups));
}

// Nothing is launched for an empty batch; the backward needs at least one landmark.
template <typename Launcher>
void run_landmark_heatmap(const HeatmapPass& pass, const Launcher& launch) {
  const bool max = pass.problem.combine == Combine::max;
  if (pass.storage == Storage::float64) {
    max ? forward_heatmap<double, true>(pass, launch) : forward_heatmap<double, false>(pass, launch);
  } else {
    max ? forward_heatmap<float, true>(pass, launch) : forward_heatmap<float, false>(pass, launch);
  }
}

template <typename Launcher>
void run_landmark_heatmap_backward(const HeatmapPass& pass, const Launcher& launch) {
  const bool max = pass.problem.combine == Combine::max;
  if (pass.storage == Storage::float64) {
    max ? backward_heatmap<double, true>(pass, launch) : backward_heatmap<double, false>(pass, launch);
  } else {
    max ? backward_heatmap<float, true>(pass, launch) : backward_heatmap<float, false>(pass, launch);
  }
}

}  // namespace pal_fast::cuda

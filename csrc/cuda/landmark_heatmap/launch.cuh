// Selects the heatmap's kernels and their launch configurations. A launcher is called as
//   launch(kernel, blocks, threads, bytes of dynamic shared memory, arguments...)
// and is a parameter so that tests can run the same launches on the emulator.
#pragma once

#include "cuda/landmark_heatmap/backward_kernels.cuh"
#include "cuda/landmark_heatmap/drawing_kernels.cuh"
#include "cuda/landmark_heatmap/matrix_kernel.cuh"

namespace pal_fast::cuda {

template <typename T, bool Max, typename Launcher>
void forward_heatmap(const HeatmapParams& params, const Launcher& launch) {
  const HeatmapProblem& problem = params.problem;
  const Gaussians<T> gaussians = gaussians_of<T>(problem, {params.landmarks, params.visible, params.weights});
  const Pointer<T> heatmap = global_array<T>(params.heatmap, problem.batch * problem.cells());
  if (fits_one_block(problem)) {
    launch(whole_heatmap_kernel<T>, problem.batch, MAX_BLOCK_THREADS, shared_bytes<WholeHeatmapShared<T>>(), gaussians,
           Max, heatmap, problem.normalize);
    return;
  }
  const HeatmapTiles& tiles = params.tiles;
  const int64_t blocks = problem.batch * tiles.count();
  const auto count = static_cast<int>(tiles.count()), tiles_along_columns = static_cast<int>(tiles.tiles_along_columns);
  const Pointer<double> divisors = global_array<double>(params.divisors, blocks);
  const Pointer<unsigned> tickets = global_array<unsigned>(params.tickets, problem.batch);
  if constexpr (std::is_same_v<T, float> && !Max) {
    launch(matrix_heatmap_kernel<T>, blocks, MATRIX_THREADS, shared_bytes<MatrixShared>(), gaussians, heatmap, divisors,
           tickets, problem.normalize, tiles.row_warps, tiles.columns, count, tiles_along_columns);
  } else {
    launch(tiled_heatmap_kernel<T, Max>, blocks, MAX_BLOCK_THREADS,
           shared_bytes<TiledHeatmapShared<T>>(tiles.rows, tiles.columns), gaussians, heatmap, divisors, tickets,
           problem.normalize, tiles.lanes, count, tiles_along_columns);
  }
}

template <typename T, bool Max, typename Launcher>
void backward_heatmap(const HeatmapParams& params, const Launcher& launch) {
  const HeatmapProblem& problem = params.problem;
  const Gaussians<T> gaussians = gaussians_of<T>(problem, {params.landmarks, params.visible, params.weights});
  const int64_t size = problem.batch * problem.cells(), points = problem.batch * problem.landmarks;
  const bool needs_raw = heatmap_needs_raw(problem);
  const Pointer<const T> grad = global_array<const T>(params.grad, size);
  const Pointer<T> raw = global_array<T>(params.raw, size);
  const Pointer<int> winner = global_array<int>(params.winner, size);
  if (needs_raw) {
    launch(raw_gradient_kernel<T>, problem.batch, MAX_BLOCK_THREADS, shared_bytes<RawGradientShared<T>>(), gaussians,
           Max, grad, raw, winner, problem.normalize);
  }
  const int64_t blocks_per_sample = (problem.landmarks + LANDMARKS_PER_BLOCK - 1) / LANDMARKS_PER_BLOCK;
  launch(landmark_gradient_kernel<T, Max>, problem.batch * blocks_per_sample, GRADIENT_THREADS, int64_t{0}, gaussians,
         needs_raw ? Pointer<const T>(raw) : grad, Pointer<const int>(winner),
         global_array<T>(params.d_landmarks, 2 * points), global_array<T>(params.d_weights, points),
         static_cast<int>(blocks_per_sample));
}

// The batch must not be empty; the backward needs at least one landmark.
template <typename Launcher>
void run_landmark_heatmap(const HeatmapParams& params, const Launcher& launch) {
  const bool max = params.problem.combine == Combine::max;
  if (params.storage == Storage::float64) {
    max ? forward_heatmap<double, true>(params, launch) : forward_heatmap<double, false>(params, launch);
  } else {
    max ? forward_heatmap<float, true>(params, launch) : forward_heatmap<float, false>(params, launch);
  }
}

template <typename Launcher>
void run_landmark_heatmap_backward(const HeatmapParams& params, const Launcher& launch) {
  const bool max = params.problem.combine == Combine::max;
  if (params.storage == Storage::float64) {
    max ? backward_heatmap<double, true>(params, launch) : backward_heatmap<double, false>(params, launch);
  } else {
    max ? backward_heatmap<float, true>(params, launch) : backward_heatmap<float, false>(params, launch);
  }
}

}  // namespace pal_fast::cuda

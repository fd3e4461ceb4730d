// The column factors (mma operand B) of matrix_kernel.cuh in shared memory.
#pragma once

#include "cuda/landmark_heatmap/plan.h"
#include "cuda/landmark_heatmap/tile.cuh"

namespace pal_fast::cuda {

inline constexpr int MATRIX_THREADS = MATRIX_WARPS * WARP_SIZE;
inline constexpr int MATRIX_N_TILES = MATRIX_STAGE_COLUMNS / 8;  // mma tiles along a stage's columns

struct MatrixShared {
  // B fragments, double-buffered, in the order in which lanes load them: conflict-free.
  Pointer<uint4> columns;     // [2, MATRIX_K_STEPS, MATRIX_N_TILES, lanes]: two pairs of landmarks, high, then low
  Pointer<uint2> columns_k8;  // [2, MATRIX_N_TILES, lanes]: the one pair of the m16n8k8 step, high, then low
  TileShared<MATRIX_LANDMARKS> tile;

  __host__ __device__ explicit MatrixShared(SharedLayout& layout)
      : columns(layout.allocate<uint4>(2 * MATRIX_K_STEPS * MATRIX_N_TILES * WARP_SIZE)),
        columns_k8(layout.allocate<uint2>(2 * MATRIX_N_TILES * WARP_SIZE)),
        tile(layout) {}

  [[nodiscard]] static __device__ __forceinline__ int index(int buffer, int step, int n, int lane) {
    return ((buffer * MATRIX_K_STEPS + step) * MATRIX_N_TILES + n) * WARP_SIZE + lane;
  }
};

// Computes the factors of a stage of columns into `buffer`: `k_steps` of m16n8k16, four landmarks a lane, and, if
// `k8_step`, one of m16n8k8, two landmarks a lane.
__device__ __forceinline__ void fill_column_stage(const Gaussians<float>& gaussians, int first_column, int k_steps,
                                                  bool k8_step, int buffer, const MatrixShared& shared) {
  const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
  const int g = lane / 4, t = lane % 4;
#pragma unroll 1
  for (int n = warp; n < MATRIX_N_TILES && first_column + n / 2 * 16 < gaussians.width; n += MATRIX_WARPS) {
    const float position = gaussians.x(first_column + column_of_fragment(n, g));
    const auto factors_of = [&](int k) {
      return column_factors(gaussians.falloff, position - shared.tile.x[k], position - shared.tile.x[k + 1]);
    };
#pragma unroll
    for (int step = 0; step < MATRIX_K_STEPS; ++step) {
      if (step < k_steps) {
        const SplitHalf2 first = factors_of(step * MMA_K + 4 * t), second = factors_of(step * MMA_K + 4 * t + 2);
        shared.columns[shared.index(buffer, step, n, lane)] = uint4{first.high, second.high, first.low, second.low};
      }
    }
    if (k8_step) {
      const SplitHalf2 pair = factors_of(MATRIX_K_STEPS * MMA_K + 2 * t);
      shared.columns_k8[(buffer * MATRIX_N_TILES + n) * WARP_SIZE + lane] = uint2{pair.high, pair.low};
    }
  }
}

}  // namespace pal_fast::cuda

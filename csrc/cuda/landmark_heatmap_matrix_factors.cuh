// The factors of landmark_heatmap_matrix_kernel.cuh, and where a block keeps them.
#pragma once

#include "landmark_heatmap_plan.h"
#include "landmark_heatmap_tile.cuh"

namespace pal_fast::cuda {

inline constexpr int MATRIX_THREADS = MATRIX_WARPS * WARP_LANES;
inline constexpr int TILES_N = MATRIX_COLUMNS / 8;  // instructions along a group's columns

struct MatrixShared {
  Pointer<uint4> columns;       // [2, MATRIX_STEPS, TILES_N, lanes]: two pairs of landmarks, high, then low
  Pointer<uint2> half_columns;  // [2, TILES_N, lanes]: the last step's one pair
  TileShared<MATRIX_LANDMARKS> tile;

  __device__ MatrixShared() : MatrixShared(SharedLayout()) {}

  [[nodiscard]] static __device__ __forceinline__ int at(int buffer, int step, int n, int lane) {
    return ((buffer * MATRIX_STEPS + step) * TILES_N + n) * WARP_LANES + lane;
  }

  // What they take, for the host.
  [[nodiscard]] static constexpr int64_t bytes() {
    SharedLayout shared;
    shared.add(2 * MATRIX_STEPS * TILES_N * WARP_LANES, sizeof(uint4));
    shared.add(2 * TILES_N * WARP_LANES, sizeof(uint2));
    TileShared<MATRIX_LANDMARKS>::add(shared);
    return shared.bytes();
  }

 private:
  __device__ explicit MatrixShared(SharedLayout shared)
      : columns(shared.take<uint4>(2 * MATRIX_STEPS * TILES_N * WARP_LANES)),
        half_columns(shared.take<uint2>(2 * TILES_N * WARP_LANES)),
        tile(shared) {}
};

// The factors of a group of columns: `steps` of four landmarks a lane, and a last one of two.
__device__ __forceinline__ void draw_columns(const Gaussians<float>& of, int first_column, int steps, bool half_step,
                                             int buffer, const MatrixShared& shared) {
  const int lane = threadIdx.x % WARP_LANES, warp = threadIdx.x / WARP_LANES;
  const int g = lane / 4, t = lane % 4;
#pragma unroll 1
  for (int n = warp; n < TILES_N && first_column + n / 2 * 16 < of.width; n += MATRIX_WARPS) {
    const float position = of.x(first_column + column_of(n, g));
    const auto draw = [&](int k) {
      return column_factors(of.falloff, position - shared.tile.x[k], position - shared.tile.x[k + 1]);
    };
#pragma unroll
    for (int step = 0; step < MATRIX_STEPS; ++step) {
      if (step < steps) {
        const PairOfHalves first = draw(step * MATRIX_DEPTH + 4 * t), second = draw(step * MATRIX_DEPTH + 4 * t + 2);
        shared.columns[shared.at(buffer, step, n, lane)] = uint4{first.high, second.high, first.low, second.low};
      }
    }
    if (half_step) {
      const PairOfHalves pair = draw(MATRIX_STEPS * MATRIX_DEPTH + 2 * t);
      shared.half_columns[(buffer * TILES_N + n) * WARP_LANES + lane] = uint2{pair.high, pair.low};
    }
  }
}

}  // namespace pal_fast::cuda

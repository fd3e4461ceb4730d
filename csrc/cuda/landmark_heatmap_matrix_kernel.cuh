// Large heatmaps that are sums in float: the product of the two matrices of `landmark_heatmap_drawing_kernels.cuh` runs
// on tensor cores. Multiplying and adding on the other cores would take twice as long as writing the map does.
//
// A warp draws the factors of its 32 rows straight into the registers that the instruction takes them from. Those of
// the columns pass through shared memory, 64 columns at a time, in the order in which lanes take them: a lane reads its
// 16 bytes and no bank is met twice. Which landmark is which k of the product, and which column which n, is free as
// long as both factors agree, so both orders are chosen for the lane: lane (g, t) has the four landmarks 4t .. 4t + 3
// of a step, and of 16 columns the four 4t .. 4t + 3 of rows g and g + 8, which it writes at once.
#pragma once

#include "landmark_heatmap_matrix_factors.cuh"
#include "landmark_heatmap_pass.h"

namespace pal_fast::cuda {

// A template only so that it is compiled once, where it is used.
template <typename T>
__global__ void __launch_bounds__(MATRIX_THREADS, MATRIX_RESIDENT_BLOCKS)
    matrix_heatmap_kernel(const Gaussians<T> gaussians,
                          const Pointer<T> heatmap,         // [B, H, W]
                          const Pointer<double> divisors,   // [B, tiles], or null
                          const Pointer<unsigned> tickets,  // [B]
                          const Normalize normalize, const int row_warps,
                          const int columns,  // of a tile
                          const int tiles, const int tiles_along_columns) {
  static_assert(std::is_same_v<T, float>);
  constexpr int M = MATRIX_ROWS / 16;  // instructions of a warp along its rows
  const MatrixShared shared;
  const int64_t sample = blockIdx.x / tiles;
  const int tile = blockIdx.x % tiles;
  const int height = gaussians.height, width = gaussians.width;
  const int lane = threadIdx.x % WARP_LANES, warp = threadIdx.x / WARP_LANES;
  const int g = lane / 4, t = lane % 4;
  const int first_row = (tile / tiles_along_columns * row_warps + (warp & (row_warps - 1))) * MATRIX_ROWS;
  const int first_column = tile % tiles_along_columns * columns, end_column = min(first_column + columns, width);
  const int first_pair = warp / row_warps, column_warps = MATRIX_WARPS / row_warps;
  const Pointer<float> of_lane =
      heatmap + (sample * height * width + static_cast<int64_t>(first_row + g) * width + 4 * t);
  const bool in_vectors = width % 4 == 0;
  place_tile(gaussians, sample, tile, shared.tile);

  for (int first = 0; first == 0 || first < gaussians.count; first += MATRIX_LANDMARKS) {
    // 1. The factors of the warp's rows, weighed: of rows g and g + 8, of one pair of landmarks and of another.
    const int count = min(gaussians.count - first, MATRIX_LANDMARKS);
    const int steps = min((count + MATRIX_DEPTH - 1) / MATRIX_DEPTH, MATRIX_STEPS);
    const bool half_step = count > MATRIX_STEPS * MATRIX_DEPTH;
    load_marks(gaussians, first, shared.tile);
    const auto& marks = shared.tile;
    unsigned high[M][MATRIX_STEPS][4], low[M][MATRIX_STEPS][4], half_high[M][2], half_low[M][2];
#pragma unroll
    for (int half = 0; half < 2 * M; ++half) {
      const float position = gaussians.y(first_row + half * 8 + g);
      const auto draw = [&](int k) { return row_factors(gaussians.falloff, position, k, marks); };
#pragma unroll
      for (int step = 0; step < MATRIX_STEPS; ++step) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const PairOfHalves pair = draw(step * MATRIX_DEPTH + 4 * t + 2 * i);
          high[half / 2][step][half % 2 + 2 * i] = pair.high;
          low[half / 2][step][half % 2 + 2 * i] = pair.low;
        }
      }
      const PairOfHalves pair = draw(MATRIX_STEPS * MATRIX_DEPTH + 2 * t);
      half_high[half / 2][half % 2] = pair.high;
      half_low[half / 2][half % 2] = pair.low;
    }

    // 2. The columns, a group at a time. The next group's factors are drawn before this one's are used, so that one
    // barrier a group is enough.
    draw_columns(gaussians, first_column, steps, half_step, 0, shared);
    int buffer = 0;
    for (int column = first_column; column < end_column; column += MATRIX_COLUMNS, buffer ^= 1) {
      __syncthreads();
      if (column + MATRIX_COLUMNS < end_column) {
        draw_columns(gaussians, column + MATRIX_COLUMNS, steps, half_step, buffer ^ 1, shared);
      }
      if (first_row >= height) {
        continue;
      }
      const int pairs = min((end_column - column + 15) / 16, TILES_N / 2);
      for (int pair = first_pair; pair < pairs; pair += column_warps) {
        // 3. The product of the high parts, and what the low ones add: high * low and low * high. low * low is below
        // 2^-22. Four neighbouring columns of a row are the lane's.
        float four[2 * M][4];
        const float scale = PRODUCT_SCALE * marks.unit[0];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          float product[M][4] = {}, correction[M][4] = {};
#pragma unroll
          for (int step = 0; step < MATRIX_STEPS; ++step) {
            if (step < steps) {
              const uint4 words = shared.columns[shared.at(buffer, step, 2 * pair + n, lane)];
              const unsigned column_high[2] = {words.x, words.y}, column_low[2] = {words.z, words.w};
#pragma unroll
              for (int m = 0; m < M; ++m) {
                multiply_add(product[m], high[m][step], column_high);
                multiply_add(correction[m], high[m][step], column_low);
                multiply_add(correction[m], low[m][step], column_high);
              }
            }
          }
          if (half_step) {
            const uint2 words = shared.half_columns[(buffer * TILES_N + 2 * pair + n) * WARP_LANES + lane];
#pragma unroll
            for (int m = 0; m < M; ++m) {
              multiply_add(product[m], half_high[m], words.x);
              multiply_add(correction[m], half_high[m], words.y);
              multiply_add(correction[m], half_low[m], words.x);
            }
          }
#pragma unroll
          for (int half = 0; half < 2 * M; ++half) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const int at = half % 2 * 2 + i;
              four[half][2 * n + i] = (product[half / 2][at] + correction[half / 2][at]) * scale;
            }
          }
        }

        // 4. They are written, on top of what an earlier pass has written.
        const int at_column = column + pair * 16;
        const int there = width - at_column - 4 * t;
        if (first == 0 && in_vectors && at_column + 16 <= width && first_row + MATRIX_ROWS <= height) {
#pragma unroll
          for (int half = 0; half < 2 * M; ++half) {
            store_vector<float>(of_lane + (half * 8 * width + at_column), four[half]);
          }
          continue;
        }
#pragma unroll
        for (int half = 0; half < 2 * M; ++half) {
          if (first_row + half * 8 + g < height && there > 0) {
            write_four(of_lane + (half * 8 * width + at_column), in_vectors, there, first != 0, four[half]);
          }
        }
      }
    }
  }

  // 5. The tile's part of the divisor; the last tile of a map divides all of it.
  if (normalize != Normalize::none) {
    divide(gaussians, heatmap, divisors, tickets, normalize == Normalize::peak, row_warps * MATRIX_ROWS, columns, tiles,
           tiles_along_columns, shared.tile);
  }
}

}  // namespace pal_fast::cuda

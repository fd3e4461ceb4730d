// Large heatmaps that are sums in float: a GEMM [rows, K] x [K, columns] of the separable factors (see
// drawing_kernels.cuh) on tensor cores by mma.sync, with float operands split into float16 pairs (mma.cuh). On CUDA
// cores the multiply-adds would take twice as long as writing the map.
//
// A warp computes the factors of its 32 rows (A) directly in the fragment registers. The factors of the columns (B)
// pass through shared memory in double-buffered stages of 64 columns, stored in fragment order: each lane loads its 16
// bytes without bank conflicts. The assignment of landmarks to k and of columns to n is free as long as A and B agree,
// so both are permuted to give lane (g, t) contiguous data: landmarks 4t .. 4t + 3 of a k step and, of every 16
// columns, columns 4t .. 4t + 3 of rows g and g + 8, each of which it stores as one 16-byte vector. More than
// MATRIX_LANDMARKS landmarks take several passes, each of which adds to the stored tile.
#pragma once

#include "cuda/landmark_heatmap/matrix_factors.cuh"
#include "cuda/landmark_heatmap/params.h"

namespace pal_fast::cuda {

// T is float. A template so that only the file that launches it compiles it.
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
  constexpr int M = MATRIX_WARP_ROWS / 16;  // mma tiles along a warp's rows
  const auto shared = allocate_shared<MatrixShared>();
  const int64_t sample = blockIdx.x / tiles;
  const int tile = blockIdx.x % tiles;
  const int height = gaussians.height, width = gaussians.width;
  const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
  const int g = lane / 4, t = lane % 4;
  const int first_row = (tile / tiles_along_columns * row_warps + (warp & (row_warps - 1))) * MATRIX_WARP_ROWS;
  const int first_column = tile % tiles_along_columns * columns, end_column = min(first_column + columns, width);
  const int first_tile_pair = warp / row_warps, column_warps = MATRIX_WARPS / row_warps;
  const Pointer<float> lane_cells =
      heatmap + (sample * height * width + static_cast<int64_t>(first_row + g) * width + 4 * t);
  const bool vectorised = width % 4 == 0;
  initialise_tile(gaussians, sample, tile, shared.tile);

  for (int first = 0; first == 0 || first < gaussians.count; first += MATRIX_LANDMARKS) {
    // 1. A: the weighted factors of the warp's rows, of the lane's rows g and g + 8 of each mma tile.
    const int count = min(gaussians.count - first, MATRIX_LANDMARKS);
    const int k_steps = min((count + MMA_K - 1) / MMA_K, MATRIX_K_STEPS);
    const bool k8_step = count > MATRIX_K_STEPS * MMA_K;
    load_landmarks(gaussians, first, shared.tile);

    unsigned high[M][MATRIX_K_STEPS][4], low[M][MATRIX_K_STEPS][4], high_k8[M][2], low_k8[M][2];
#pragma unroll
    for (int half = 0; half < 2 * M; ++half) {
      const float position = gaussians.y(first_row + half * 8 + g);
      const auto factors_of = [&](int k) { return row_factors(gaussians.falloff, position, k, shared.tile); };
#pragma unroll
      for (int step = 0; step < MATRIX_K_STEPS; ++step) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const SplitHalf2 pair = factors_of(step * MMA_K + 4 * t + 2 * i);
          high[half / 2][step][half % 2 + 2 * i] = pair.high;
          low[half / 2][step][half % 2 + 2 * i] = pair.low;
        }
      }
      const SplitHalf2 pair = factors_of(MATRIX_K_STEPS * MMA_K + 2 * t);
      high_k8[half / 2][half % 2] = pair.high;
      low_k8[half / 2][half % 2] = pair.low;
    }

    // 2. B: stages of columns, double-buffered. The next stage is computed before the current one is used, so that one
    // barrier per stage suffices.
    fill_column_stage(gaussians, first_column, k_steps, k8_step, 0, shared);
    int buffer = 0;
    for (int column = first_column; column < end_column; column += MATRIX_STAGE_COLUMNS, buffer ^= 1) {
      __syncthreads();
      if (column + MATRIX_STAGE_COLUMNS < end_column) {
        fill_column_stage(gaussians, column + MATRIX_STAGE_COLUMNS, k_steps, k8_step, buffer ^ 1, shared);
      }
      if (first_row >= height) {
        continue;
      }
      const int pairs = min((end_column - column + 15) / 16, MATRIX_N_TILES / 2);
      for (int pair = first_tile_pair; pair < pairs; pair += column_warps) {
        // 3. high * high, and in an accumulator of its own the correction high * low + low * high; low * low, below
        // 2^-22, is dropped. A pair of mma tiles gives a lane four neighbouring columns of each of its rows.
        float four[2 * M][4];
        const float scale = ACCUMULATOR_SCALE * shared.tile.unit[0];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          float accumulator[M][4] = {}, correction[M][4] = {};
#pragma unroll
          for (int step = 0; step < MATRIX_K_STEPS; ++step) {
            if (step < k_steps) {
              const uint4 words = shared.columns[shared.index(buffer, step, 2 * pair + n, lane)];
              const unsigned column_high[2] = {words.x, words.y}, column_low[2] = {words.z, words.w};
#pragma unroll
              for (int m = 0; m < M; ++m) {
                mma_m16n8k16(accumulator[m], high[m][step], column_high);
                mma_m16n8k16(correction[m], high[m][step], column_low);
                mma_m16n8k16(correction[m], low[m][step], column_high);
              }
            }
          }
          if (k8_step) {
            const uint2 words = shared.columns_k8[(buffer * MATRIX_N_TILES + 2 * pair + n) * WARP_SIZE + lane];
#pragma unroll
            for (int m = 0; m < M; ++m) {
              mma_m16n8k8(accumulator[m], high_k8[m], words.x);
              mma_m16n8k8(correction[m], high_k8[m], words.y);
              mma_m16n8k8(correction[m], low_k8[m], words.x);
            }
          }
#pragma unroll
          for (int half = 0; half < 2 * M; ++half) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const int register_index = half % 2 * 2 + i;
              four[half][2 * n + i] =
                  (accumulator[half / 2][register_index] + correction[half / 2][register_index]) * scale;
            }
          }
        }

        // 4. Epilogue: store, adding to what an earlier pass stored.
        const int store_column = column + pair * 16;
        const int valid = width - store_column - 4 * t;
        if (first == 0 && vectorised && store_column + 16 <= width && first_row + MATRIX_WARP_ROWS <= height) {
#pragma unroll
          for (int half = 0; half < 2 * M; ++half) {
            store_vector<float>(lane_cells + (half * 8 * width + store_column), four[half]);
          }
          continue;
        }
#pragma unroll
        for (int half = 0; half < 2 * M; ++half) {
          if (first_row + half * 8 + g < height && valid > 0) {
            store_four(lane_cells + (half * 8 * width + store_column), vectorised, valid, first != 0, four[half]);
          }
        }
      }
    }
  }

  // 5. Normalise: partial divisors per tile; the last block of a map divides all of it.
  if (normalize != Normalize::none) {
    normalise_tile(gaussians, heatmap, divisors, tickets, normalize == Normalize::peak, row_warps * MATRIX_WARP_ROWS,
                   columns, tiles, tiles_along_columns, shared.tile);
  }
}

}  // namespace pal_fast::cuda

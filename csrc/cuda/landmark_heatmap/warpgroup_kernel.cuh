// Large heatmaps that are sums in float, of up to WARPGROUP_LANDMARKS landmarks, on an H100 or H200: the GEMM of
// matrix_kernel.cuh by wgmma, which runs asynchronously while the block computes the next stage.
//
// A warpgroup keeps the factors of 64 rows (A) in registers. The factors of the columns (B) pass through shared memory
// in double-buffered stages of 64 columns, as core matrices: eight landmarks of a column in 16 bytes. Columns are
// permuted (`column_of_fragment`) so that a lane's accumulators hold four neighbouring cells of a row.
#pragma once

#include "cuda/landmark_heatmap/params.h"
#include "cuda/landmark_heatmap/tile.cuh"
#include "cuda/landmark_heatmap/wgmma.cuh"

namespace pal_fast::cuda {

inline constexpr int WARPGROUP_BLOCK_THREADS = WARPGROUPS * WARPGROUP_THREADS;
inline constexpr int K_GROUPS = WARPGROUP_LANDMARKS / 8;  // core matrices along k
static_assert(WARPGROUP_ROWS == WGMMA_M && WARPGROUP_STAGE_COLUMNS == WGMMA_N);

struct WarpgroupShared {
  // [2, K_GROUPS, WARPGROUP_STAGE_COLUMNS], double-buffered; an element is eight landmarks of a column.
  Pointer<uint4> high, low;
  TileShared<WARPGROUP_LANDMARKS> tile;

  __host__ __device__ explicit WarpgroupShared(SharedLayout& layout)
      : high(layout.allocate<uint4>(2 * K_GROUPS * WARPGROUP_STAGE_COLUMNS)),
        low(layout.allocate<uint4>(2 * K_GROUPS * WARPGROUP_STAGE_COLUMNS)),
        tile(layout) {}

  [[nodiscard]] static __device__ __forceinline__ int index(int buffer, int k_group) {
    return (buffer * K_GROUPS + k_group) * WARPGROUP_STAGE_COLUMNS;
  }
};

// Computes the factors of a stage of columns into `buffer`, for the first `k_groups` groups of eight landmarks.
__device__ __forceinline__ void fill_column_stage(const Gaussians<float>& gaussians, int first_column, int k_groups,
                                                  int buffer, const WarpgroupShared& shared) {
  constexpr int K_GROUP_STRIDE = WARPGROUP_BLOCK_THREADS / WARPGROUP_STAGE_COLUMNS;
  const int n = threadIdx.x % WARPGROUP_STAGE_COLUMNS;
  const float position = gaussians.x(first_column + column_of_fragment(n / 8, n % 8));
#pragma unroll 1
  for (int k_group = threadIdx.x / WARPGROUP_STAGE_COLUMNS; k_group < k_groups; k_group += K_GROUP_STRIDE) {
    const Pointer<const float> centres = shared.tile.x + k_group * 8;
    unsigned high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const SplitHalf2 pair =
          column_factors(gaussians.falloff, position - centres[2 * i], position - centres[2 * i + 1]);
      high[i] = pair.high;
      low[i] = pair.low;
    }
    const int to = shared.index(buffer, k_group) + n;
    shared.high[to] = uint4{high[0], high[1], high[2], high[3]};
    shared.low[to] = uint4{low[0], low[1], low[2], low[3]};
  }
}

// Stores a lane's accumulators of a stage: in rows g and g + 8, four neighbouring cells of every 16 columns. From the
// lane's first cell `to` the map extends `rows` rows and `columns` columns; `interior`: all of the warpgroup's cells
// lie on the map, so that no store needs a predicate.
__device__ __forceinline__ void store_accumulator(Pointer<float> to, int width, int columns, int rows, bool interior,
                                                  const float (&accumulator)[32]) {
  constexpr int PAIRS = WARPGROUP_STAGE_COLUMNS / 16;
  const auto for_each_four = [&](const auto& store) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int pair = 0; pair < PAIRS; ++pair) {
        const int first = 8 * pair + 2 * half;
        float four[4] = {accumulator[first], accumulator[first + 1], accumulator[first + 4], accumulator[first + 5]};
        store(to + (half * 8 * width + pair * 16), half, pair, four);
      }
    }
  };
  const bool vectorised = width % 4 == 0;
  if (interior && vectorised) {
    for_each_four([](const Pointer<float>& cells, int, int, float (&four)[4]) { store_vector<float>(cells, four); });
  } else {
    for_each_four([&](const Pointer<float>& cells, int half, int pair, float (&four)[4]) {
      if (half * 8 < rows && pair * 16 < columns) {
        store_four(cells, vectorised, columns - pair * 16, false, four);
      }
    });
  }
}

// Handles up to 16 * KSteps landmarks.
template <int KSteps>
__global__ void __launch_bounds__(WARPGROUP_BLOCK_THREADS, WARPGROUP_RESIDENT_BLOCKS)
    warpgroup_heatmap_kernel(const Gaussians<float> gaussians,
                             const Pointer<float> heatmap,     // [B, H, W]
                             const Pointer<double> divisors,   // [B, tiles], or null
                             const Pointer<unsigned> tickets,  // [B]
                             const Normalize normalize,
                             const int columns,  // of a tile
                             const int tiles, const int tiles_along_columns) {
  const auto shared = allocate_shared<WarpgroupShared>();
  const int64_t sample = blockIdx.x / tiles;
  const int tile = blockIdx.x % tiles;
  const int height = gaussians.height, width = gaussians.width;
  const int lane = threadIdx.x % WARP_SIZE, g = lane / 4, t = lane % 4;
  // Broadcast so that the compiler knows that it is warp-uniform: ptxas serialises wgmma under a branch that may
  // diverge.
  const int warpgroup = __shfl_sync(FULL_WARP_MASK, static_cast<int>(threadIdx.x) / WARPGROUP_THREADS, 0);
  const int warpgroup_row = (tile / tiles_along_columns * WARPGROUPS + warpgroup) * WARPGROUP_ROWS;
  const int first_row = warpgroup_row + static_cast<int>(threadIdx.x) % WARPGROUP_THREADS / WARP_SIZE * 16 + g;
  const int first_column = tile % tiles_along_columns * columns, end_column = min(first_column + columns, width);
  const Pointer<float> lane_cells =
      heatmap + (sample * height * width + static_cast<int64_t>(first_row) * width + 4 * t);
  initialise_tile(gaussians, sample, tile, shared.tile);
  load_landmarks(gaussians, 0, shared.tile);

  // 1. A: the weighted factors of the lane's two rows.
  unsigned high[KSteps][4], low[KSteps][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float position = gaussians.y(first_row + half * 8);
#pragma unroll
    for (int step = 0; step < KSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int k = step * WGMMA_K + i * 8 + 2 * t;
        const SplitHalf2 pair = row_factors(gaussians.falloff, position, k, shared.tile);
        high[step][half + 2 * i] = pair.high;
        low[step][half + 2 * i] = pair.low;
      }
    }
  }

  // Pad k: groups without a landmark have zero factors, stored once in both buffers.
  const int k_groups = (gaussians.count + 7) / 8;
  for (int i = k_groups * WARPGROUP_STAGE_COLUMNS + static_cast<int>(threadIdx.x);
       i < 2 * KSteps * WARPGROUP_STAGE_COLUMNS; i += WARPGROUP_BLOCK_THREADS) {
#pragma unroll
    for (int buffer = 0; buffer < 2; ++buffer) {
      shared.high[shared.index(buffer, 0) + i] = shared.low[shared.index(buffer, 0) + i] = uint4{0, 0, 0, 0};
    }
  }

  float accumulator[32] = {};
  int buffer = 0;
  fill_column_stage(gaussians, first_column, k_groups, buffer, shared);
  for (int column = first_column; column < end_column; column += WARPGROUP_STAGE_COLUMNS, buffer ^= 1) {
    fence_proxy_async_shared();
    __syncthreads();
    const bool active = warpgroup_row < height;
    // 2. Issue the wgmma: first the small corrections high * low + low * high, then high * high on top of them; low *
    // low, below 2^-22, is dropped.
    if (active) {
      constexpr int K_STEP = WGMMA_K / 8 * WARPGROUP_STAGE_COLUMNS;
      const MatrixDescriptor b_high = matrix_descriptor(shared.high + shared.index(buffer, 0));
      const MatrixDescriptor b_low = matrix_descriptor(shared.low + shared.index(buffer, 0));
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < KSteps; ++step) {
        wgmma_m64n64k16(accumulator, high[step], b_low + step * K_STEP, step > 0);
        wgmma_m64n64k16(accumulator, low[step], b_high + step * K_STEP, true);
      }
#pragma unroll
      for (int step = 0; step < KSteps; ++step) {
        wgmma_m64n64k16(accumulator, high[step], b_high + step * K_STEP, true);
      }
      wgmma_commit_group();
    }

    // 3. Meanwhile compute the next stage. Its buffer is free: every warpgroup waited for the wgmma that read it before
    // it reached this iteration's barrier.
    if (column + WARPGROUP_STAGE_COLUMNS < end_column) {
      fill_column_stage(gaussians, column + WARPGROUP_STAGE_COLUMNS, k_groups, buffer ^ 1, shared);
    }

    // 4. Epilogue: scale and store.
    if (!active) {
      continue;
    }
    wgmma_wait_group(accumulator);
    const float scale = ACCUMULATOR_SCALE * shared.tile.unit[0];
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      accumulator[i] *= scale;
    }
    store_accumulator(lane_cells + column, width, width - column - 4 * t, height - first_row,
                      column + WARPGROUP_STAGE_COLUMNS <= width && warpgroup_row + WARPGROUP_ROWS <= height,
                      accumulator);
  }

  // 5. Normalise: partial divisors per tile; the last block of a map divides all of it.
  if (normalize != Normalize::none) {
    normalise_tile(gaussians, heatmap, divisors, tickets, normalize == Normalize::peak, WARPGROUPS * WARPGROUP_ROWS,
                   columns, tiles, tiles_along_columns, shared.tile);
  }
}

}  // namespace pal_fast::cuda

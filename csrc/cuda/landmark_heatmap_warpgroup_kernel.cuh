// Large heatmaps that are sums in float, of up to WARPGROUP_LANDMARKS landmarks, on an H100 or H200: as in
// landmark_heatmap_matrix_kernel.cuh, but warpgroups multiply, and draw the next columns' factors meanwhile.
//
// A warpgroup keeps the factors of 64 rows in registers. Those of the columns pass through shared memory, 64 columns at
// a time, eight landmarks of a column in 16 bytes. Which column is which n of the product is free, and is chosen so
// that a lane has four neighbours of a row (`column_of`).
#pragma once

#include "landmark_heatmap_pass.h"
#include "landmark_heatmap_tile.cuh"
#include "warpgroup.cuh"

namespace pal_fast::cuda {

inline constexpr int HEATMAP_WARPGROUP_THREADS = WARPGROUPS * WARPGROUP_THREADS;
inline constexpr int EIGHTS = WARPGROUP_LANDMARKS / 8;
static_assert(WARPGROUP_ROWS == PRODUCT_ROWS && WARPGROUP_COLUMNS == PRODUCT_COLUMNS);

struct WarpgroupShared {
  Pointer<uint4> high, low;  // [2, EIGHTS, WARPGROUP_COLUMNS]: eight landmarks of a column
  TileShared<WARPGROUP_LANDMARKS> tile;

  __device__ WarpgroupShared() : WarpgroupShared(SharedLayout()) {}

  [[nodiscard]] static __device__ __forceinline__ int at(int buffer, int eight) {
    return (buffer * EIGHTS + eight) * WARPGROUP_COLUMNS;
  }

  // What they take, for the host.
  [[nodiscard]] static constexpr int64_t bytes() {
    SharedLayout shared;
    shared.add(2 * EIGHTS * WARPGROUP_COLUMNS, sizeof(uint4));
    shared.add(2 * EIGHTS * WARPGROUP_COLUMNS, sizeof(uint4));
    TileShared<WARPGROUP_LANDMARKS>::add(shared);
    return shared.bytes();
  }

 private:
  __device__ explicit WarpgroupShared(SharedLayout shared)
      : high(shared.take<uint4>(2 * EIGHTS * WARPGROUP_COLUMNS)),
        low(shared.take<uint4>(2 * EIGHTS * WARPGROUP_COLUMNS)),
        tile(shared) {}
};

// The factors of a group of columns: `eights` times eight landmarks.
__device__ __forceinline__ void draw_columns(const Gaussians<float>& of, int first_column, int eights, int buffer,
                                             const WarpgroupShared& shared) {
  constexpr int APART = HEATMAP_WARPGROUP_THREADS / WARPGROUP_COLUMNS;
  const int n = threadIdx.x % WARPGROUP_COLUMNS;
  const float position = of.x(first_column + column_of(n / 8, n % 8));
#pragma unroll 1
  for (int eight = threadIdx.x / WARPGROUP_COLUMNS; eight < eights; eight += APART) {
    const Pointer<const float> centres = shared.tile.x + eight * 8;
    unsigned high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const PairOfHalves pair = column_factors(of.falloff, position - centres[2 * i], position - centres[2 * i + 1]);
      high[i] = pair.high;
      low[i] = pair.low;
    }
    const int to = shared.at(buffer, eight) + n;
    shared.high[to] = uint4{high[0], high[1], high[2], high[3]};
    shared.low[to] = uint4{low[0], low[1], low[2], low[3]};
  }
}

// A lane's cells of a group: of two rows, four neighbours in every 16 columns. Of the map there are `rows` rows and
// `columns` columns from its first cell on; `whole`: the group lies on it with all lanes' cells.
__device__ __forceinline__ void write_group(Pointer<float> to, int width, int columns, int rows, bool whole,
                                            const float (&product)[32]) {
  constexpr int PAIRS = WARPGROUP_COLUMNS / 16;
  const auto write = [&](const auto& write_one) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int pair = 0; pair < PAIRS; ++pair) {
        const int first = 8 * pair + 2 * half;
        float four[4] = {product[first], product[first + 1], product[first + 4], product[first + 5]};
        write_one(to + (half * 8 * width + pair * 16), half, pair, four);
      }
    }
  };
  const bool in_vectors = width % 4 == 0;
  if (whole && in_vectors) {
    write([](const Pointer<float>& at, int, int, float (&four)[4]) { store_vector<float>(at, four); });
  } else {
    write([&](const Pointer<float>& at, int half, int pair, float (&four)[4]) {
      if (half * 8 < rows && pair * 16 < columns) {
        write_four(at, in_vectors, columns - pair * 16, false, four);
      }
    });
  }
}

// Of up to 16 `Steps` landmarks.
template <int Steps>
__global__ void __launch_bounds__(HEATMAP_WARPGROUP_THREADS, WARPGROUP_RESIDENT_BLOCKS)
    warpgroup_heatmap_kernel(const Gaussians<float> gaussians,
                             const Pointer<float> heatmap,     // [B, H, W]
                             const Pointer<double> divisors,   // [B, tiles], or null
                             const Pointer<unsigned> tickets,  // [B]
                             const Normalize normalize,
                             const int columns,  // of a tile
                             const int tiles, const int tiles_along_columns) {
  const WarpgroupShared shared;
  const int64_t sample = blockIdx.x / tiles;
  const int tile = blockIdx.x % tiles;
  const int height = gaussians.height, width = gaussians.width;
  const int lane = threadIdx.x % WARP_LANES, g = lane / 4, t = lane % 4;
  // The same in all lanes, and the compiler knows it: products in a branch that might diverge would not overlap.
  const int warpgroup = __shfl_sync(WHOLE_WARP, static_cast<int>(threadIdx.x) / WARPGROUP_THREADS, 0);
  const int warpgroup_row = (tile / tiles_along_columns * WARPGROUPS + warpgroup) * WARPGROUP_ROWS;
  const int first_row = warpgroup_row + static_cast<int>(threadIdx.x) % WARPGROUP_THREADS / WARP_LANES * 16 + g;
  const int first_column = tile % tiles_along_columns * columns, end_column = min(first_column + columns, width);
  const Pointer<float> of_lane = heatmap + (sample * height * width + static_cast<int64_t>(first_row) * width + 4 * t);
  place_tile(gaussians, sample, tile, shared.tile);
  load_marks(gaussians, 0, shared.tile);

  // 1. The factors of the lane's two rows, weighed.
  unsigned high[Steps][4], low[Steps][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float position = gaussians.y(first_row + half * 8);
#pragma unroll
    for (int step = 0; step < Steps; ++step) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int k = step * PRODUCT_DEPTH + i * 8 + 2 * t;
        const PairOfHalves pair = row_factors(gaussians.falloff, position, k, shared.tile);
        high[step][half + 2 * i] = pair.high;
        low[step][half + 2 * i] = pair.low;
      }
    }
  }

  // Landmarks that there are not have factors 0 in both, and are drawn once.
  const int eights = (gaussians.count + 7) / 8;
  for (int at = eights * WARPGROUP_COLUMNS + static_cast<int>(threadIdx.x); at < 2 * Steps * WARPGROUP_COLUMNS;
       at += HEATMAP_WARPGROUP_THREADS) {
#pragma unroll
    for (int buffer = 0; buffer < 2; ++buffer) {
      shared.high[shared.at(buffer, 0) + at] = shared.low[shared.at(buffer, 0) + at] = uint4{0, 0, 0, 0};
    }
  }

  float product[32] = {};
  int buffer = 0;
  draw_columns(gaussians, first_column, eights, buffer, shared);
  for (int column = first_column; column < end_column; column += WARPGROUP_COLUMNS, buffer ^= 1) {
    show_to_products();
    __syncthreads();
    const bool multiplies = warpgroup_row < height;
    // 2. The products begin: of the low parts with the high ones, which are small, and of the high ones on top of them.
    // low * low is below 2^-22.
    if (multiplies) {
      constexpr int STEP = PRODUCT_DEPTH / 8 * WARPGROUP_COLUMNS;
      const MatrixPlace of_high = place_of(shared.high + shared.at(buffer, 0));
      const MatrixPlace of_low = place_of(shared.low + shared.at(buffer, 0));
      begin_products();
#pragma unroll
      for (int step = 0; step < Steps; ++step) {
        multiply_add(product, high[step], of_low + step * STEP, step > 0);
        multiply_add(product, low[step], of_high + step * STEP, true);
      }
#pragma unroll
      for (int step = 0; step < Steps; ++step) {
        multiply_add(product, high[step], of_high + step * STEP, true);
      }
      commit_products();
    }

    // 3. The next columns' factors are drawn meanwhile. What the last products have read of the buffer, they have read:
    // every warpgroup has waited for its own before the barrier.
    if (column + WARPGROUP_COLUMNS < end_column) {
      draw_columns(gaussians, column + WARPGROUP_COLUMNS, eights, buffer ^ 1, shared);
    }

    // 4. The cells are written, four neighbours of a row at once.
    if (!multiplies) {
      continue;
    }
    wait_for_products(product);
    const float scale = PRODUCT_SCALE * shared.tile.unit[0];
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      product[i] *= scale;
    }
    write_group(of_lane + column, width, width - column - 4 * t, height - first_row,
                column + WARPGROUP_COLUMNS <= width && warpgroup_row + WARPGROUP_ROWS <= height, product);
  }

  // 5. The tile's part of the divisor; the last tile of a map divides all of it.
  if (normalize != Normalize::none) {
    divide(gaussians, heatmap, divisors, tickets, normalize == Normalize::peak, WARPGROUPS * WARPGROUP_ROWS, columns,
           tiles, tiles_along_columns, shared.tile);
  }
}

}  // namespace pal_fast::cuda

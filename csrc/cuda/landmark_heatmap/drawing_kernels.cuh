// Heatmaps of landmarks on CUDA cores. Gaussians are separable, so a sum of K of them is a product of two thin
// matrices, [H, K] by [K, W]: a tile of the map takes K * (rows + columns) exponentials, kept in shared memory, instead
// of K * rows * columns. The only atomics are the arrival counters.
#pragma once

#include "cuda/drawing.cuh"
#include "cuda/landmark_heatmap/normalisation.cuh"
#include "cuda/landmark_heatmap/params.h"
#include "cuda/shared_layout.cuh"

namespace pal_fast::cuda {

// 1. Small maps: one block draws and normalises a whole map.
template <typename T>
struct WholeHeatmapShared {
  Pointer<T> factors;       // [DRAW_SCRATCH_ELEMENTS]
  Pointer<double> scratch;  // [MAX_BLOCK_WARPS]

  __host__ __device__ explicit WholeHeatmapShared(SharedLayout& layout)
      : factors(layout.allocate<T>(DRAW_SCRATCH_ELEMENTS)), scratch(layout.allocate<double>(MAX_BLOCK_WARPS)) {}
};

template <typename T>
__global__ void __launch_bounds__(MAX_BLOCK_THREADS, 1)
    whole_heatmap_kernel(const Gaussians<T> gaussians, const bool max,
                         const Pointer<T> heatmap,  // [B, H, W]
                         const Normalize normalize) {
  const auto shared = allocate_shared<WholeHeatmapShared<T>>();
  const int64_t sample = blockIdx.x;
  const int cells = gaussians.height * gaussians.width;
  const Pointer<T> map = heatmap + sample * cells;
  draw(gaussians, max, sample, 0, cells, map, Pointer<int>(nullptr), shared.factors);
  if (normalize == Normalize::none) {
    return;
  }
  double divisor[1] = {normalize == Normalize::peak ? -static_cast<double>(INFINITY) : 0.0};
  for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
    const double value = map[cell];
    divisor[0] = normalize == Normalize::peak ? Maximum()(divisor[0], value) : divisor[0] + value;
  }
  normalize == Normalize::peak ? block_reduce<1>(divisor, shared.scratch, Maximum())
                               : block_reduce<1>(divisor, shared.scratch, Sum());
  const T quotient_divisor = static_cast<T>(divisor_or_one(divisor[0]));
  for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
    map[cell] /= quotient_divisor;
  }
}

// 2. Large maps that are maxima or double: a block draws a tile, each thread TILE_ROWS x TILE_COLUMNS cells of it in
// registers, TILE_LANDMARKS landmarks at a time. The last block of a map normalises it.
inline constexpr int TILE_LANDMARKS = 16;

template <typename T>
struct TiledHeatmapShared {
  Pointer<T> along_x;        // [TILE_LANDMARKS, columns]
  Pointer<T> along_y;        // [TILE_LANDMARKS, rows]
  Pointer<T> landmark_data;  // [TILE_LANDMARKS, LANDMARK_ELEMENTS]
  Pointer<double> scratch;   // [MAX_BLOCK_WARPS]
  Pointer<unsigned> flag;

  __host__ __device__ TiledHeatmapShared(SharedLayout& layout, int rows, int columns)
      : along_x(layout.allocate<T>(TILE_LANDMARKS * columns)),
        along_y(layout.allocate<T>(TILE_LANDMARKS * rows)),
        landmark_data(layout.allocate<T>(TILE_LANDMARKS * LANDMARK_ELEMENTS)),
        scratch(layout.allocate<double>(MAX_BLOCK_WARPS)),
        flag(layout.allocate<unsigned>(1)) {}
};

template <typename T, bool Max>
__global__ void __launch_bounds__(MAX_BLOCK_THREADS, 1)
    tiled_heatmap_kernel(const Gaussians<T> gaussians,
                         const Pointer<T> heatmap,         // [B, H, W]
                         const Pointer<double> divisors,   // [B, tiles], or null
                         const Pointer<unsigned> tickets,  // [B]
                         const Normalize normalize, const int lanes, const int tiles, const int tiles_along_columns) {
  const int columns = lanes * TILE_COLUMNS, rows = MAX_BLOCK_THREADS / lanes * TILE_ROWS;
  const auto shared = allocate_shared<TiledHeatmapShared<T>>(rows, columns);

  const int64_t sample = blockIdx.x / tiles;
  const int tile = blockIdx.x % tiles;
  const int first_row = tile / tiles_along_columns * rows, first_column = tile % tiles_along_columns * columns;
  const int thread_row = static_cast<int>(threadIdx.x) / lanes * TILE_ROWS;
  const int thread_column = static_cast<int>(threadIdx.x) % lanes * TILE_COLUMNS;

  // Accumulate the tile.
  T h[TILE_ROWS][TILE_COLUMNS];
#pragma unroll
  for (int i = 0; i < TILE_ROWS; ++i) {
#pragma unroll
    for (int j = 0; j < TILE_COLUMNS; ++j) {
      h[i][j] = Max ? static_cast<T>(-INFINITY) : T(0);
    }
  }
  for (int first = 0; first < gaussians.count; first += TILE_LANDMARKS) {
    fill_factors(gaussians, Max, sample, first, TILE_LANDMARKS, first_column, columns, first_row, rows, shared.along_x,
                 shared.along_y, shared.landmark_data);
#pragma unroll 4
    for (int k = 0; k < TILE_LANDMARKS; ++k) {
      T x[TILE_COLUMNS], y[TILE_ROWS];
#pragma unroll
      for (int j = 0; j < TILE_COLUMNS; ++j) {
        x[j] = shared.along_x[k * columns + thread_column + j];
      }
#pragma unroll
      for (int i = 0; i < TILE_ROWS; ++i) {
        y[i] = shared.along_y[k * rows + thread_row + i];
      }
#pragma unroll
      for (int i = 0; i < TILE_ROWS; ++i) {
#pragma unroll
        for (int j = 0; j < TILE_COLUMNS; ++j) {
          const T value = y[i] * x[j];
          h[i][j] = Max ? (value > h[i][j] ? value : h[i][j]) : h[i][j] + value;
        }
      }
    }
  }

  // Reduce the tile's partial divisor; if the map has no other tile, it is the divisor.
  const int height = gaussians.height, width = gaussians.width;
  const bool peak = normalize == Normalize::peak;
  double divisor[1] = {peak ? -static_cast<double>(INFINITY) : 0.0};
#pragma unroll
  for (int i = 0; i < TILE_ROWS; ++i) {
#pragma unroll
    for (int j = 0; j < TILE_COLUMNS; ++j) {
      if (Max && h[i][j] == static_cast<T>(-INFINITY)) {
        h[i][j] = 0;
      }
      if (normalize != Normalize::none && first_row + thread_row + i < height &&
          first_column + thread_column + j < width) {
        divisor[0] = peak ? Maximum()(divisor[0], static_cast<double>(h[i][j])) : divisor[0] + h[i][j];
      }
    }
  }
  T map_divisor = 1;
  if (normalize != Normalize::none) {
    peak ? block_reduce<1>(divisor, shared.scratch, Maximum()) : block_reduce<1>(divisor, shared.scratch, Sum());
    if (tiles == 1) {
      map_divisor = static_cast<T>(divisor_or_one(divisor[0]));
    } else if (threadIdx.x == 0) {
      divisors[sample * tiles + tile] = divisor[0];
    }
  }

  // Store, by 16-byte vectors where rows consist of them.
  static_assert(TILE_COLUMNS % VECTOR_SIZE<T> == 0);
  const Pointer<T> map = heatmap + sample * height * width;
#pragma unroll
  for (int i = 0; i < TILE_ROWS; ++i) {
    const int row = first_row + thread_row + i;
#pragma unroll
    for (int j = 0; j < TILE_COLUMNS; j += VECTOR_SIZE<T>) {
      const int column = first_column + thread_column + j;
      if (row >= height) {
        continue;
      }
      T vector[VECTOR_SIZE<T>];
#pragma unroll
      for (int e = 0; e < VECTOR_SIZE<T>; ++e) {
        vector[e] = normalize != Normalize::none && tiles == 1 ? h[i][j + e] / map_divisor : h[i][j + e];
      }
      if (width % VECTOR_SIZE<T> == 0) {
        if (column < width) {
          store_vector<T>(map + row * width + column, vector);
        }
      } else {
        for (int e = 0; e < VECTOR_SIZE<T>; ++e) {
          if (column + e < width) {
            map[row * width + column + e] = vector[e];
          }
        }
      }
    }
  }

  // The last block of the map normalises it.
  if (normalize != Normalize::none && tiles > 1 && is_last_block(tickets + sample, tiles, shared.flag)) {
    normalise_map<T>(map, height * width, divisors + sample * tiles, tiles, peak, shared.scratch);
  }
}

}  // namespace pal_fast::cuda

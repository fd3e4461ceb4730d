// Common parts of the kernels that draw tiles of large heatmaps on tensor cores: landmarks in shared memory, factors
// split into float16 pairs, and the epilogue that stores and normalises a tile.
#pragma once

#include "cuda/gaussians.cuh"
#include "cuda/landmark_heatmap/mma.cuh"
#include "cuda/landmark_heatmap/normalisation.cuh"
#include "cuda/shared_layout.cuh"

namespace pal_fast::cuda {

// Shared memory of a block that draws a tile, up to `Landmarks` landmarks a pass.
template <int Landmarks>
struct TileShared {
  Pointer<float> x, y, weight;     // [Landmarks]; weight / unit * OPERAND_SCALE, 0 for invalid landmarks
  Pointer<float> float_scratch;    // [MAX_BLOCK_WARPS]
  Pointer<double> double_scratch;  // [MAX_BLOCK_WARPS]
  Pointer<unsigned> flag;
  // Rarely used values, kept here to save registers.
  Pointer<int> tile_index;  // sample and tile
  Pointer<float> unit;      // of the weights

  __host__ __device__ explicit TileShared(SharedLayout& layout)
      : x(layout.allocate<float>(Landmarks)),
        y(layout.allocate<float>(Landmarks)),
        weight(layout.allocate<float>(Landmarks)),
        float_scratch(layout.allocate<float>(MAX_BLOCK_WARPS)),
        double_scratch(layout.allocate<double>(MAX_BLOCK_WARPS)),
        flag(layout.allocate<unsigned>(1)),
        tile_index(layout.allocate<int>(2)),
        unit(layout.allocate<float>(1)) {}
};

// The power of two above the sample's largest |weight|, returned to every thread. Weights are divided by it, so that
// mma operands are at most 1. At least 2^-90, so that its product with ACCUMULATOR_SCALE is a normal number.
[[nodiscard]] __device__ __forceinline__ float weight_unit(const Gaussians<float>& gaussians, int64_t sample,
                                                           Pointer<float> scratch) {
  if (!gaussians.weights) {
    return 1.0f;
  }
  float largest[1] = {0.0f};
  for (int k = threadIdx.x; k < gaussians.count; k += blockDim.x) {
    largest[0] = Maximum()(largest[0], fabsf(load_landmark(gaussians, sample, k).weight));
  }
  block_reduce<1>(largest, scratch, Maximum());
  constexpr float MIN_UNIT = 0x1p-90f;
  return fmaxf(2.0f * unit_of(largest[0]), MIN_UNIT);
}

// Sets the tile's index and its sample's weight unit. The caller must synchronise before they are read.
template <int Landmarks>
__device__ __forceinline__ void initialise_tile(const Gaussians<float>& gaussians, int64_t sample, int tile,
                                                const TileShared<Landmarks>& shared) {
  const float unit = weight_unit(gaussians, sample, shared.float_scratch);
  if (threadIdx.x == 0) {
    shared.tile_index[0] = static_cast<int>(sample);
    shared.tile_index[1] = tile;
    shared.unit[0] = unit;
  }
}

// Loads the landmarks of a pass, from `first` on. Begins and ends with a barrier.
template <int Landmarks>
__device__ __forceinline__ void load_landmarks(const Gaussians<float>& gaussians, int first,
                                               const TileShared<Landmarks>& shared) {
  __syncthreads();  // those of the previous pass may still be read
  const int64_t sample = shared.tile_index[0];
  const float inverse_unit = inverse_of_unit(shared.unit[0]);
  for (int k = threadIdx.x; k < Landmarks; k += blockDim.x) {
    const Landmark<float> landmark = first + k < gaussians.count ? load_landmark(gaussians, sample, first + k)
                                                                 : Landmark<float>{0.0f, 0.0f, 0.0f, false};
    shared.x[k] = landmark.x;
    shared.y[k] = landmark.y;
    shared.weight[k] = landmark.weight * inverse_unit * OPERAND_SCALE;
  }
  __syncthreads();
}

// The split factors of a column for two neighbouring landmarks, at `distance` and `next_distance`.
[[nodiscard]] __device__ __forceinline__ SplitHalf2 column_factors(float falloff, float distance, float next_distance) {
  return split_half2(OPERAND_SCALE * gaussian(falloff, distance), OPERAND_SCALE * gaussian(falloff, next_distance));
}

// The same of a row for landmarks k and k + 1, times their weights.
template <int Landmarks>
[[nodiscard]] __device__ __forceinline__ SplitHalf2 row_factors(float falloff, float position, int k,
                                                                const TileShared<Landmarks>& shared) {
  return split_half2(shared.weight[k] * gaussian(falloff, position - shared.y[k]),
                     shared.weight[k + 1] * gaussian(falloff, position - shared.y[k + 1]));
}

// The column, within a stage, that is column g of the n-th 8-column mma tile. The permutation gives a lane, whose
// accumulators are two neighbouring columns of each mma tile, four neighbouring columns of every two tiles, which it
// stores as one vector.
[[nodiscard]] __device__ __forceinline__ int column_of_fragment(int n, int g) {
  return n / 2 * 16 + g / 2 * 4 + n % 2 * 2 + g % 2;
}

// Stores four neighbouring cells of a row, of which the first `valid` lie on the map; `accumulate` adds what an earlier
// pass stored there.
__device__ __forceinline__ void store_four(Pointer<float> to, bool vectorised, int valid, bool accumulate,
                                           float (&four)[4]) {
  if (vectorised) {
    if (accumulate) {
      float before[4];
      load_vector<float>(to).widen(before);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        four[i] += before[i];
      }
    }
    store_vector<float>(to, four);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < valid) {
      to[i] = accumulate ? to[i] + four[i] : four[i];
    }
  }
}

// Reduces the tile's partial divisor; the last block of a map combines them and normalises the map.
template <int Landmarks>
__device__ __forceinline__ void normalise_tile(const Gaussians<float>& gaussians, Pointer<float> heatmap,
                                               Pointer<double> divisors, Pointer<unsigned> tickets, bool peak, int rows,
                                               int columns, int tiles, int tiles_along_columns,
                                               const TileShared<Landmarks>& shared) {
  const int64_t sample = shared.tile_index[0];
  const int tile = shared.tile_index[1];
  const int top = tile / tiles_along_columns * rows, left = tile % tiles_along_columns * columns;
  const Pointer<float> map = heatmap + sample * gaussians.height * gaussians.width;
  const double divisor = reduce_tile_divisor<float>(map + left, gaussians.width, top, min(top + rows, gaussians.height),
                                                    min(columns, gaussians.width - left), peak, shared.double_scratch);
  if (threadIdx.x == 0) {
    divisors[sample * tiles + tile] = divisor;
  }
  if (is_last_block(tickets + sample, tiles, shared.flag)) {
    normalise_map<float>(map, gaussians.height * gaussians.width, divisors + sample * tiles, tiles, peak,
                         shared.double_scratch);
  }
}

}  // namespace pal_fast::cuda

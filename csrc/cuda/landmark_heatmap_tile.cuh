// What the kernels that draw a tile of a large heatmap on tensor cores share: the landmarks' marks, their factors in
// halves, and how a tile is written and divided.
#pragma once

#include "gaussians.cuh"
#include "landmark_heatmap_division.cuh"
#include "matrix.cuh"

namespace pal_fast::cuda {

// Shared memory of a block that draws a tile, from up to `Landmarks` landmarks at a time.
template <int Landmarks>
struct TileShared {
  Pointer<float> x, y, weight;  // [Landmarks]; the weight in units and times HALF_SCALE, 0 for what is dropped
  Pointer<float> floats;        // [MOST_WARPS]
  Pointer<double> doubles;      // [MOST_WARPS]
  Pointer<unsigned> flag;
  // What is asked for seldom takes no register meanwhile.
  Pointer<int> place;   // sample and tile
  Pointer<float> unit;  // of the weights

  __device__ explicit TileShared(SharedLayout& shared) {
    x = shared.take<float>(Landmarks);
    y = shared.take<float>(Landmarks);
    weight = shared.take<float>(Landmarks);
    floats = shared.take<float>(MOST_WARPS);
    doubles = shared.take<double>(MOST_WARPS);
    flag = shared.take<unsigned>(1);
    place = shared.take<int>(2);
    unit = shared.take<float>(1);
  }

  // What they take, for the host.
  static constexpr void add(SharedLayout& shared) {
    for (int vector = 0; vector < 3; ++vector) {
      shared.add(Landmarks, sizeof(float));
    }
    shared.add(MOST_WARPS, sizeof(float));
    shared.add(MOST_WARPS, sizeof(double));
    shared.add(1, sizeof(unsigned));
    shared.add(2, sizeof(int));
    shared.add(1, sizeof(float));
  }
};

// The power of two above the sample's largest weight, in every thread: weights are divided by it, so that products of
// factors are at most 1. Not below 2^-90, so that it times PRODUCT_SCALE is a normal number.
[[nodiscard]] __device__ __forceinline__ float weight_unit(const Gaussians<float>& of, int64_t sample,
                                                           Pointer<float> scratch) {
  if (!of.weights) {
    return 1.0f;
  }
  float largest[1] = {0.0f};
  for (int k = threadIdx.x; k < of.count; k += blockDim.x) {
    largest[0] = Maximum()(largest[0], fabsf(landmark(of, sample, k).weight));
  }
  reduce_block<1>(largest, scratch, Maximum());
  constexpr float LEAST = 0x1p-90f;
  return fmaxf(2.0f * unit_of(largest[0]), LEAST);
}

// Where the block's tile lies, and the unit of its sample's weights. To be followed by a barrier.
template <int Landmarks>
__device__ __forceinline__ void place_tile(const Gaussians<float>& of, int64_t sample, int tile,
                                           const TileShared<Landmarks>& shared) {
  const float unit = weight_unit(of, sample, shared.floats);
  if (threadIdx.x == 0) {
    shared.place[0] = static_cast<int>(sample);
    shared.place[1] = tile;
    shared.unit[0] = unit;
  }
}

// The landmarks of a pass. Begins and ends with a barrier.
template <int Landmarks>
__device__ __forceinline__ void load_marks(const Gaussians<float>& of, int first, const TileShared<Landmarks>& shared) {
  __syncthreads();  // the last pass's may still be read
  const int64_t sample = shared.place[0];
  const float inverse_unit = inverse_of_unit(shared.unit[0]);
  for (int k = threadIdx.x; k < Landmarks; k += blockDim.x) {
    const Landmark<float> mark =
        first + k < of.count ? landmark(of, sample, first + k) : Landmark<float>{0.0f, 0.0f, 0.0f, false};
    shared.x[k] = mark.x;
    shared.y[k] = mark.y;
    shared.weight[k] = mark.weight * inverse_unit * HALF_SCALE;
  }
  __syncthreads();
}

// The halves of neighbouring landmarks' factors of a column, at `distance` and `next_distance`.
[[nodiscard]] __device__ __forceinline__ PairOfHalves column_factors(float falloff, float distance,
                                                                     float next_distance) {
  return halves_of(HALF_SCALE * gaussian(falloff, distance), HALF_SCALE * gaussian(falloff, next_distance));
}

// The same of a row, of the landmarks k and k + 1, weighed.
template <int Landmarks>
[[nodiscard]] __device__ __forceinline__ PairOfHalves row_factors(float falloff, float position, int k,
                                                                  const TileShared<Landmarks>& shared) {
  return halves_of(shared.weight[k] * gaussian(falloff, position - shared.y[k]),
                   shared.weight[k + 1] * gaussian(falloff, position - shared.y[k + 1]));
}

// Of a group of columns, which one is the g-th of the eight of instruction n: a lane, which has two of each
// instruction's product, then has four neighbours of two.
[[nodiscard]] __device__ __forceinline__ int column_of(int n, int g) {
  return n / 2 * 16 + g / 2 * 4 + n % 2 * 2 + g % 2;
}

// Four neighbouring cells of a row, of which the first `there` are on the map, on top of what is there.
__device__ __forceinline__ void write_four(Pointer<float> to, bool in_vectors, int there, bool add, float (&four)[4]) {
  if (in_vectors) {
    if (add) {
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
    if (i < there) {
      to[i] = add ? to[i] + four[i] : four[i];
    }
  }
}

// The block's part of the divisor; the last block of a map divides all of it.
template <int Landmarks>
__device__ __forceinline__ void divide(const Gaussians<float>& of, Pointer<float> heatmap, Pointer<double> divisors,
                                       Pointer<unsigned> tickets, bool peak, int rows, int columns, int tiles,
                                       int tiles_along_columns, const TileShared<Landmarks>& shared) {
  const int64_t sample = shared.place[0];
  const int tile = shared.place[1];
  const int top = tile / tiles_along_columns * rows, left = tile % tiles_along_columns * columns;
  const Pointer<float> map = heatmap + sample * of.height * of.width;
  const double divisor = divisor_of_tile<float>(map + left, of.width, top, min(top + rows, of.height),
                                                min(columns, of.width - left), peak, shared.doubles);
  if (threadIdx.x == 0) {
    divisors[sample * tiles + tile] = divisor;
  }
  if (last_block(tickets + sample, tiles, shared.flag)) {
    divide_map<float>(map, of.height * of.width, divisors + sample * tiles, tiles, peak, shared.doubles);
  }
}

}  // namespace pal_fast::cuda

// The factors of landmark_heatmap_matrix_kernel.cuh, and where a block keeps them.
#pragma once

#include "gaussians.cuh"
#include "landmark_heatmap_plan.h"
#include "matrix.cuh"

namespace pal_fast::cuda {

inline constexpr int MATRIX_THREADS = MATRIX_WARPS * WARP_LANES;
inline constexpr int TILES_N = MATRIX_COLUMNS / 8;  // instructions along a group's columns

struct MatrixShared {
  Pointer<uint4> columns;       // [2, MATRIX_STEPS, TILES_N, lanes]: two pairs of landmarks, high, then low
  Pointer<uint2> half_columns;  // [2, TILES_N, lanes]: the last step's one pair
  Pointer<float> x, y, weight;  // [MATRIX_LANDMARKS]; the weight in units, 0 for what is dropped
  Pointer<float> floats;        // [MOST_WARPS]
  Pointer<double> doubles;      // [MOST_WARPS]
  Pointer<unsigned> flag;
  // What is asked for seldom takes no register meanwhile.
  Pointer<int> place;   // sample and tile
  Pointer<float> unit;  // of the weights

  __device__ MatrixShared() {
    SharedLayout shared;
    columns = shared.take<uint4>(2 * MATRIX_STEPS * TILES_N * WARP_LANES);
    half_columns = shared.take<uint2>(2 * TILES_N * WARP_LANES);
    x = shared.take<float>(MATRIX_LANDMARKS);
    y = shared.take<float>(MATRIX_LANDMARKS);
    weight = shared.take<float>(MATRIX_LANDMARKS);
    floats = shared.take<float>(MOST_WARPS);
    doubles = shared.take<double>(MOST_WARPS);
    flag = shared.take<unsigned>(1);
    place = shared.take<int>(2);
    unit = shared.take<float>(1);
  }

  [[nodiscard]] static __device__ __forceinline__ int at(int buffer, int step, int n, int lane) {
    return ((buffer * MATRIX_STEPS + step) * TILES_N + n) * WARP_LANES + lane;
  }

  // What they take, for the host.
  [[nodiscard]] static constexpr int64_t bytes() {
    SharedLayout shared;
    shared.add(2 * MATRIX_STEPS * TILES_N * WARP_LANES, sizeof(uint4));
    shared.add(2 * TILES_N * WARP_LANES, sizeof(uint2));
    for (int vector = 0; vector < 3; ++vector) {
      shared.add(MATRIX_LANDMARKS, sizeof(float));
    }
    shared.add(MOST_WARPS, sizeof(float));
    shared.add(MOST_WARPS, sizeof(double));
    shared.add(1, sizeof(unsigned));
    shared.add(2, sizeof(int));
    shared.add(1, sizeof(float));
    return shared.bytes();
  }
};

// The power of two above the sample's largest weight, in every thread: weights are divided by it, so that products of
// factors are at most 1.
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
  return 2.0f * unit_of(largest[0]);
}

// The landmarks of a pass. Begins and ends with a barrier.
__device__ __forceinline__ void load_marks(const Gaussians<float>& of, int first, const MatrixShared& shared) {
  __syncthreads();  // the last pass's may still be read
  const int64_t sample = shared.place[0];
  const float inverse_unit = inverse_of_unit(shared.unit[0]);
  static_assert(MATRIX_LANDMARKS <= MATRIX_THREADS);
  if (const int k = threadIdx.x; k < MATRIX_LANDMARKS) {
    const Landmark<float> mark =
        first + k < of.count ? landmark(of, sample, first + k) : Landmark<float>{0.0f, 0.0f, 0.0f, false};
    shared.x[k] = mark.x;
    shared.y[k] = mark.y;
    shared.weight[k] = mark.weight * inverse_unit;
  }
  __syncthreads();
}

// Two landmarks' factors, as the instruction takes them.
struct PairOfFactors {
  unsigned high, low;
};
[[nodiscard]] __device__ __forceinline__ PairOfFactors factors_of(float first, float second) {
  const Halves of_first = halves_of(first), of_second = halves_of(second);
  return {pair_of(of_first.high, of_second.high), pair_of(of_first.low, of_second.low)};
}

// The column that is a lane's n = g of the group's instruction `n`.
[[nodiscard]] __device__ __forceinline__ int column_of(int n, int g) {
  return n / 2 * 16 + g / 2 * 4 + n % 2 * 2 + g % 2;
}

// The factors of a group of columns: `steps` of four landmarks a lane, and a last one of two.
__device__ __forceinline__ void draw_columns(const Gaussians<float>& of, int first_column, int steps, bool half_step,
                                             int buffer, const MatrixShared& shared) {
  const int lane = threadIdx.x % WARP_LANES, warp = threadIdx.x / WARP_LANES;
  const int g = lane / 4, t = lane % 4;
#pragma unroll 1
  for (int n = warp; n < TILES_N && first_column + n / 2 * 16 < of.width; n += MATRIX_WARPS) {
    const float position = of.x(first_column + column_of(n, g));
    const auto draw = [&](int k) {
      return factors_of(gaussian(of.falloff, position - shared.x[k]), gaussian(of.falloff, position - shared.x[k + 1]));
    };
#pragma unroll
    for (int step = 0; step < MATRIX_STEPS; ++step) {
      if (step < steps) {
        const PairOfFactors first = draw(step * MATRIX_DEPTH + 4 * t), second = draw(step * MATRIX_DEPTH + 4 * t + 2);
        shared.columns[shared.at(buffer, step, n, lane)] = uint4{first.high, second.high, first.low, second.low};
      }
    }
    if (half_step) {
      const PairOfFactors pair = draw(MATRIX_STEPS * MATRIX_DEPTH + 2 * t);
      shared.half_columns[(buffer * TILES_N + n) * WARP_LANES + lane] = uint2{pair.high, pair.low};
    }
  }
}

}  // namespace pal_fast::cuda

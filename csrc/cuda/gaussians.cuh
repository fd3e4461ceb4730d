// Landmarks and their Gaussians, which are separable: h = exp(-(dx^2 + dy^2) / (2 sigma^2)) is the product of a factor
// of the column and one of the row.
#pragma once

#include <cmath>

#include "cuda/block.cuh"
#include "problem.h"

namespace pal_fast::cuda {

// Kernel argument: the landmarks of a batch and the map that they are drawn on.
template <typename T>
struct Gaussians {
  Pointer<const T> landmarks;            // [B, K, 2]
  Pointer<const unsigned char> visible;  // [B, K] bool, or null
  Pointer<const T> weights;              // [B, K], or null
  int count;                             // K
  int height, width;                     // H, W
  T step_x, step_y;                      // image pixels per cell
  T falloff;                             // -1 / (2 sigma^2)

  // The centre of a column or row, in image pixels.
  [[nodiscard]] __device__ __forceinline__ T x(int column) const { return (T(column) + T(0.5)) * step_x - T(0.5); }
  [[nodiscard]] __device__ __forceinline__ T y(int row) const { return (T(row) + T(0.5)) * step_y - T(0.5); }
};

// The landmark tensors of a launch; null where absent.
struct LandmarkPointers {
  const void* landmarks = nullptr;  // [B, K, 2]
  const void* visible = nullptr;    // [B, K] bool
  const void* weights = nullptr;    // [B, K]
};

template <typename T>
[[nodiscard]] Gaussians<T> gaussians_of(const HeatmapProblem& problem, const LandmarkPointers& pointers) {
  const int64_t points = problem.batch * problem.landmarks;
  return {global_array<const T>(pointers.landmarks, 2 * points),
          global_array<const unsigned char>(pointers.visible, points),
          global_array<const T>(pointers.weights, points),
          static_cast<int>(problem.landmarks),
          static_cast<int>(problem.height),
          static_cast<int>(problem.width),
          static_cast<T>(problem.image_width / static_cast<double>(problem.width)),
          static_cast<T>(problem.image_height / static_cast<double>(problem.height)),
          static_cast<T>(-0.5 / (problem.sigma * problem.sigma))};
}

// One landmark. It is invalid, and all zeros, if a coordinate is not finite or it is not visible.
template <typename T>
struct Landmark {
  T x, y, weight;
  bool valid;
};

template <typename T>
[[nodiscard]] __device__ __forceinline__ Landmark<T> load_landmark(const Gaussians<T>& gaussians, int64_t sample,
                                                                   int k) {
  const int64_t index = sample * gaussians.count + k;
  const T x = gaussians.landmarks[2 * index], y = gaussians.landmarks[2 * index + 1];
  const T infinity = static_cast<T>(INFINITY);
  // False for NaN, too.
  const bool valid = fabs(x) < infinity && fabs(y) < infinity && (!gaussians.visible || gaussians.visible[index] != 0);
  if (!valid) {
    return {T(0), T(0), T(0), false};
  }
  return {x, y, gaussians.weights ? gaussians.weights[index] : T(1), true};
}

// exp(falloff * distance^2) along one axis. In float its relative error is 2^-22 plus that of rounding the exponent,
// and results below 2^-126 are 0; exp() would take three times as many instructions.
template <typename T>
[[nodiscard]] __device__ __forceinline__ T gaussian(T falloff, T distance) {
  if constexpr (std::is_same_v<T, float>) {
    constexpr float LOG2_E = 1.44269504088896340736f;
    return exp2_approx(falloff * LOG2_E * (distance * distance));
  } else {
    return exp(falloff * (distance * distance));
  }
}

// The thread's share of the number of valid landmarks of the sample, to be summed over the block.
template <typename T>
[[nodiscard]] __device__ __forceinline__ int valid_landmarks_of_thread(const Gaussians<T>& gaussians, int64_t sample) {
  int valid = 0;
#pragma unroll 1
  for (int k = threadIdx.x; k < gaussians.count; k += blockDim.x) {
    valid += load_landmark(gaussians, sample, k).valid ? 1 : 0;
  }
  return valid;
}

// Elements of shared memory that a landmark takes besides its factors: x, y and weight.
inline constexpr int LANDMARK_ELEMENTS = 3;

// Computes the factors of a chunk of landmarks in shared memory: along_x [chunk, columns] and, with the weights,
// along_y [chunk, rows], so that h_ij = combine_k along_y[k, i] * along_x[k, j]. Invalid landmarks have along_y = 0 in
// a sum and NaN, which wins no comparison, in a maximum. landmark_data: LANDMARK_ELEMENTS * chunk elements of scratch.
// Begins and ends with a barrier.
template <typename T>
__device__ __forceinline__ void fill_factors(const Gaussians<T>& gaussians, bool max, int64_t sample,
                                             int first_landmark, int chunk, int first_column, int columns,
                                             int first_row, int rows, Pointer<T> along_x, Pointer<T> along_y,
                                             Pointer<T> landmark_data) {
  const int threads = blockDim.x, thread = threadIdx.x;
  __syncthreads();  // the previous chunk may still be read
  for (int k = thread; k < chunk; k += threads) {
    const bool in_range = first_landmark + k < gaussians.count;
    const Landmark<T> landmark =
        in_range ? load_landmark(gaussians, sample, first_landmark + k) : Landmark<T>{T(0), T(0), T(0), false};
    landmark_data[k] = landmark.x;
    landmark_data[chunk + k] = landmark.y;
    landmark_data[2 * chunk + k] = landmark.valid ? landmark.weight : max ? static_cast<T>(NAN) : T(0);
  }
  __syncthreads();
  // A thread computes one column's or row's factors of every landmark; where there are more threads than columns and
  // rows, groups of threads divide the landmarks.
  const int length = columns + rows, groups = length < threads ? threads / length : 1;
  const int group = groups == 1 ? 0 : thread / length;
  for (int i = groups == 1 ? thread : group < groups ? thread % length : length; i < length; i += threads) {
    const bool is_x = i < columns;
    const int row = i - columns;
    const T position = is_x ? gaussians.x(first_column + i) : gaussians.y(first_row + row);
    const Pointer<const T> centres = landmark_data + (is_x ? 0 : chunk), weights = landmark_data + 2 * chunk;
    const Pointer<T> factors = is_x ? along_x + i : along_y + row;
    const int pitch = is_x ? columns : rows;
#pragma unroll 4
    for (int k = group; k < chunk; k += groups) {
      const T e = gaussian(gaussians.falloff, position - centres[k]);
      factors[k * pitch] = is_x ? e : weights[k] * e;
    }
  }
  __syncthreads();
}

}  // namespace pal_fast::cuda

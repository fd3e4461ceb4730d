// Landmarks and the Gaussians they make.
#pragma once

#include <cmath>

#include "../problem.h"
#include "block.cuh"

namespace pal_fast::cuda {

// The landmarks of a batch and the map they are drawn on, as kernels take them.
template <typename T>
struct Gaussians {
  Pointer<const T> landmarks;            // [B, K, 2]
  Pointer<const unsigned char> visible;  // [B, K] bool, or null
  Pointer<const T> weights;              // [B, K], or null
  int count;                             // K
  int height, width;                     // H, W
  T step_x, step_y;                      // pixels of the image per cell
  T falloff;                             // -1 / (2 sigma^2)

  [[nodiscard]] __device__ __forceinline__ T x(int column) const { return (T(column) + T(0.5)) * step_x - T(0.5); }
  [[nodiscard]] __device__ __forceinline__ T y(int row) const { return (T(row) + T(0.5)) * step_y - T(0.5); }
};

// What a launch is given of landmarks; null if there are none.
struct LandmarkPointers {
  const void* landmarks = nullptr;  // [B, K, 2]
  const void* visible = nullptr;    // [B, K] bool
  const void* weights = nullptr;    // [B, K]
};

template <typename T>
[[nodiscard]] Gaussians<T> gaussians_of(const HeatmapProblem& problem, const LandmarkPointers& pointers) {
  const int64_t points = problem.batch * problem.landmarks;
  return {elements<const T>(pointers.landmarks, 2 * points),
          elements<const unsigned char>(pointers.visible, points),
          elements<const T>(pointers.weights, points),
          static_cast<int>(problem.landmarks),
          static_cast<int>(problem.height),
          static_cast<int>(problem.width),
          static_cast<T>(problem.image_width / static_cast<double>(problem.width)),
          static_cast<T>(problem.image_height / static_cast<double>(problem.height)),
          static_cast<T>(-0.5 / (problem.sigma * problem.sigma))};
}

// One landmark; what is not finite or not visible is not valid, and has zeros.
template <typename T>
struct Landmark {
  T x, y, weight;
  bool valid;
};

template <typename T>
[[nodiscard]] __device__ __forceinline__ Landmark<T> landmark(const Gaussians<T>& of, int64_t sample, int k) {
  const int64_t index = sample * of.count + k;
  const T x = of.landmarks[2 * index], y = of.landmarks[2 * index + 1];
  const T infinity = static_cast<T>(INFINITY);
  // A comparison with NaN is false, so this asks for finite coordinates.
  const bool valid = fabs(x) < infinity && fabs(y) < infinity && (!of.visible || of.visible[index] != 0);
  if (!valid) {
    return {T(0), T(0), T(0), false};
  }
  return {x, y, of.weights ? of.weights[index] : T(1), true};
}

// exp(falloff * distance^2) along one axis. In float it is within 2^-22 of the value and of what rounds its exponent,
// and 0 below 2^-126; exp() would take three times as many instructions.
template <typename T>
[[nodiscard]] __device__ __forceinline__ T gaussian(T falloff, T distance) {
  if constexpr (std::is_same_v<T, float>) {
    constexpr float LOG2_E = 1.44269504088896340736f;
    return power_of_two(falloff * LOG2_E * (distance * distance));
  } else {
    return exp(falloff * (distance * distance));
  }
}

// How many of the sample's landmarks are valid, in every thread. scratch: MOST_WARPS elements.
template <typename T>
[[nodiscard]] __device__ int valid_landmarks(const Gaussians<T>& of, int64_t sample, Pointer<int> scratch) {
  int valid[1] = {0};
  for (int k = threadIdx.x; k < of.count; k += blockDim.x) {
    valid[0] += landmark(of, sample, k).valid ? 1 : 0;
  }
  reduce_block<1>(valid, scratch, Sum());
  return valid[0];
}

// Elements of shared memory that a landmark takes beside its factors: x, y, and the weight.
inline constexpr int MARK_ELEMENTS = 3;

// The factors of a chunk of landmarks, [chunk, columns] and [chunk, rows], in shared memory: h_ij = combine_k y_ki
// x_kj. The weight is in y. Landmarks that are dropped have y = 0 in a sum and NaN, which wins no comparison, in a
// maximum. marks: MARK_ELEMENTS * chunk. Begins and ends with a barrier.
template <typename T>
__device__ __forceinline__ void fill_factors(const Gaussians<T>& of, bool max, int64_t sample, int first_landmark,
                                             int chunk, int first_column, int columns, int first_row, int rows,
                                             Pointer<T> along_x, Pointer<T> along_y, Pointer<T> marks) {
  const int threads = blockDim.x, thread = threadIdx.x;
  __syncthreads();  // the last chunk may still be read
  for (int k = thread; k < chunk; k += threads) {
    const bool there = first_landmark + k < of.count;
    const Landmark<T> mark = there ? landmark(of, sample, first_landmark + k) : Landmark<T>{T(0), T(0), T(0), false};
    marks[k] = mark.x;
    marks[chunk + k] = mark.y;
    marks[2 * chunk + k] = mark.valid ? mark.weight : max ? static_cast<T>(NAN) : T(0);
  }
  __syncthreads();
  // A thread keeps to a column or a row, of every landmark or, where there are threads to spare, of some.
  const int length = columns + rows, groups = length < threads ? threads / length : 1;
  const int group = groups == 1 ? 0 : thread / length;
  for (int at = groups == 1 ? thread : group < groups ? thread % length : length; at < length; at += threads) {
    const bool is_x = at < columns;
    const int row = at - columns;
    const T position = is_x ? of.x(first_column + at) : of.y(first_row + row);
    const Pointer<const T> centres = marks + (is_x ? 0 : chunk), weights = marks + 2 * chunk;
    const Pointer<T> to = is_x ? along_x + at : along_y + row;
    const int pitch = is_x ? columns : rows;
#pragma unroll 4
    for (int k = group; k < chunk; k += groups) {
      const T e = gaussian(of.falloff, position - centres[k]);
      to[k * pitch] = is_x ? e : weights[k] * e;
    }
  }
  __syncthreads();
}

}  // namespace pal_fast::cuda

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

// exp(falloff * distance^2) along one axis.
template <typename T>
[[nodiscard]] __device__ __forceinline__ T gaussian(T falloff, T distance) {
  return exp(falloff * (distance * distance));
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

// The factors of a chunk of landmarks, [chunk, columns] and [chunk, rows], in shared memory: h_ij = combine_k y_ki
// x_kj. The weight is in y. Landmarks that are dropped have y = 0 in a sum and NaN, which wins no comparison, in a
// maximum.
template <bool Max, typename T>
__device__ __forceinline__ void fill_factors(const Gaussians<T>& of, int64_t sample, int first_landmark, int chunk,
                                             int first_column, int columns, int first_row, int rows, Pointer<T> along_x,
                                             Pointer<T> along_y) {
  const int length = columns + rows;
  for (int index = threadIdx.x; index < chunk * length; index += blockDim.x) {
    const int k = index / length, at = index % length;
    const bool there = first_landmark + k < of.count;
    const Landmark<T> mark = there ? landmark(of, sample, first_landmark + k) : Landmark<T>{T(0), T(0), T(0), false};
    if (at < columns) {
      along_x[k * columns + at] = gaussian(of.falloff, of.x(first_column + at) - mark.x);
    } else {
      const int row = at - columns;
      const T value = mark.weight * gaussian(of.falloff, of.y(first_row + row) - mark.y);
      along_y[k * rows + row] = mark.valid ? value : Max ? static_cast<T>(NAN) : T(0);
    }
  }
}

// Elements of shared memory for the factors that draw() holds at once.
inline constexpr int DRAWING_ELEMENTS = 2048;

// Cells [begin, end) of a sample's map into out[0, end - begin), not normalised; and, if winner is not null, the
// landmark that a maximum took at each, -1 for none. A cell that no landmark reaches is 0. Every thread writes the
// cells begin + threadIdx.x + i * blockDim.x; the caller waits before others read them.
template <bool Max, typename T>
__device__ void draw(const Gaussians<T>& of, int64_t sample, int begin, int end, Pointer<T> out, Pointer<int> winner,
                     Pointer<T> factors) {
  const int first_row = begin / of.width, rows = (end - 1) / of.width - first_row + 1;
  const int length = of.width + rows;
  const T lowest = Max ? static_cast<T>(-INFINITY) : T(0);
  for (int cell = begin + threadIdx.x; cell < end; cell += blockDim.x) {
    out[cell - begin] = lowest;
    if (Max && winner) {
      winner[cell - begin] = -1;
    }
  }
  const auto combine = [&](int cell, int k, T value) {
    T& best = out[cell - begin];
    if constexpr (Max) {
      if (value > best) {  // a tie stays with the first
        best = value;
        if (winner) {
          winner[cell - begin] = k;
        }
      }
    } else {
      best += value;
    }
  };
  if (length > DRAWING_ELEMENTS) {  // not even one landmark's factors fit: a map of some thousand columns
    for (int k = 0; k < of.count; ++k) {
      const Landmark<T> mark = landmark(of, sample, k);
      for (int cell = begin + threadIdx.x; mark.valid && cell < end; cell += blockDim.x) {
        const T along_y = mark.weight * gaussian(of.falloff, of.y(cell / of.width) - mark.y);
        combine(cell, k, along_y * gaussian(of.falloff, of.x(cell % of.width) - mark.x));
      }
    }
  } else {
    const int most = DRAWING_ELEMENTS / length, chunk = most < of.count ? most : of.count;
    const Pointer<T> along_x = factors, along_y = factors + chunk * of.width;
    for (int first = 0; first < of.count; first += chunk) {
      const int now = of.count - first < chunk ? of.count - first : chunk;
      __syncthreads();  // the factors may still be read
      fill_factors<Max>(of, sample, first, now, 0, of.width, first_row, rows, along_x, along_y);
      __syncthreads();
      for (int cell = begin + threadIdx.x; cell < end; cell += blockDim.x) {
        const int row = cell / of.width - first_row, column = cell % of.width;
        if constexpr (Max) {
          for (int k = 0; k < now; ++k) {
            combine(cell, first + k, along_y[k * rows + row] * along_x[k * of.width + column]);
          }
        } else {
          T sum = 0;
#pragma unroll 4
          for (int k = 0; k < now; ++k) {
            sum += along_y[k * rows + row] * along_x[k * of.width + column];
          }
          combine(cell, 0, sum);
        }
      }
    }
  }
  if constexpr (Max) {
    for (int cell = begin + threadIdx.x; cell < end; cell += blockDim.x) {
      if (out[cell - begin] == lowest) {
        out[cell - begin] = 0;
      }
    }
  }
}

}  // namespace pal_fast::cuda

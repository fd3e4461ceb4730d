// The gradients of landmarks and weights.
#pragma once

#include "drawing.cuh"
#include "landmark_heatmap_division.cuh"
#include "landmark_heatmap_pass.h"

namespace pal_fast::cuda {

// 1. The gradient of the heatmap before it was normalised, and each cell's winner: a block a sample.
template <typename T>
[[nodiscard]] constexpr int64_t raw_gradient_shared() {
  SharedLayout layout;
  layout.add(DRAWING_ELEMENTS, sizeof(T));
  layout.add(2 * MOST_WARPS, sizeof(double));
  return layout.bytes();
}

template <typename T>
__global__ void __launch_bounds__(MOST_THREADS, 1)
    raw_gradient_kernel(const Gaussians<T> gaussians, const bool max,
                        const Pointer<const T> grad,  // [B, H, W]
                        const Pointer<T> raw,         // [B, H, W]
                        const Pointer<int> winner,    // [B, H, W], null unless max
                        const Normalize normalize) {
  SharedLayout shared;
  const Pointer<T> factors = shared.take<T>(DRAWING_ELEMENTS);
  const Pointer<double> scratch = shared.take<double>(2 * MOST_WARPS);
  const int64_t sample = blockIdx.x;
  const int cells = gaussians.height * gaussians.width;
  const Pointer<T> map = raw + sample * cells;
  const Pointer<const T> given = grad + sample * cells;
  // The heatmap again, kept in raw.
  draw(gaussians, max, sample, 0, cells, map, winner ? winner + sample * cells : winner, factors);
  if (normalize == Normalize::none) {
    for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
      map[cell] = given[cell];
    }
    return;
  }

  double sums[2] = {0.0, 0.0};  // total of h, sum of grad * h
  double peak[1] = {-static_cast<double>(INFINITY)};
  for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
    const double h = map[cell];
    sums[0] += h;
    sums[1] += h * given[cell];
    peak[0] = Maximum()(peak[0], h);
  }
  reduce_block<2>(sums, scratch, Sum());
  reduce_block<1>(peak, scratch, Maximum());

  // d raw = grad / D - dD * sum(grad * h) / D^2. The derivative of a maximum is shared by the cells that hold it, that
  // of a total is 1 everywhere.
  const bool by_peak = normalize == Normalize::peak;
  const double divisor = by_peak ? peak[0] : sums[0];
  double holders[1] = {0.0};
  for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
    holders[0] += static_cast<double>(map[cell]) == peak[0] ? 1.0 : 0.0;
  }
  reduce_block<1>(holders, scratch, Sum());
  const double inverse = 1.0 / divisor_or_one(divisor);
  const double pull = divisor == 0.0 ? 0.0 : sums[1] * inverse * inverse / (by_peak ? holders[0] : 1.0);
  for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
    const bool holds = !by_peak || static_cast<double>(map[cell]) == peak[0];
    map[cell] = static_cast<T>(given[cell] * inverse - (holds ? pull : 0.0));
  }
}

// 2. The gradients of landmarks and weights: a warp takes LANDMARKS_PER_WARP landmarks over the whole map. For a column
// it first sums grad * gy and grad * gy * dy over the rows; gx enters once a column.
inline constexpr int LANDMARKS_PER_WARP = 4;
inline constexpr int COLUMNS_PER_LANE = 2;
inline constexpr int GRADIENT_THREADS = 128;
inline constexpr int LANDMARKS_PER_BLOCK = GRADIENT_THREADS / WARP_LANES * LANDMARKS_PER_WARP;

template <typename T, bool Max>
__global__ void __launch_bounds__(GRADIENT_THREADS, 1)
    landmark_gradient_kernel(const Gaussians<T> gaussians,
                             const Pointer<const T> grad,      // [B, H, W], before it was normalised
                             const Pointer<const int> winner,  // [B, H, W], Max only
                             const Pointer<T> d_landmarks,     // [B, K, 2], or null
                             const Pointer<T> d_weights,       // [B, K], or null
                             const int groups) {               // blocks of a sample
  constexpr int L = LANDMARKS_PER_WARP;
  const int64_t sample = blockIdx.x / groups;
  const int lane = threadIdx.x % WARP_LANES, warp = threadIdx.x / WARP_LANES;
  const int first = (blockIdx.x % groups * (GRADIENT_THREADS / WARP_LANES) + warp) * L;
  if (first >= gaussians.count) {
    return;  // all lanes of the warp
  }
  const int height = gaussians.height, width = gaussians.width;
  const int64_t base = sample * height * width;
  Landmark<T> marks[L];
#pragma unroll
  for (int l = 0; l < L; ++l) {
    marks[l] = first + l < gaussians.count ? landmark(gaussians, sample, first + l) : Landmark<T>{0, 0, 0, false};
  }

  T strength[L] = {}, along_x[L] = {}, along_y[L] = {};  // sum of grad e, grad e dx, grad e dy
  for (int block = 0; block < width; block += WARP_LANES * COLUMNS_PER_LANE) {
    T of_column[COLUMNS_PER_LANE][L] = {}, of_column_dy[COLUMNS_PER_LANE][L] = {};
    for (int first_row = 0; first_row < height; first_row += WARP_LANES) {
      T gy[L];
#pragma unroll
      for (int l = 0; l < L; ++l) {
        gy[l] = gaussian(gaussians.falloff, gaussians.y(first_row + lane) - marks[l].y);
      }
      const int rows = height - first_row < WARP_LANES ? height - first_row : WARP_LANES;
      for (int r = 0; r < rows; ++r) {
        const int row = first_row + r;
        T value[COLUMNS_PER_LANE];
        int won[COLUMNS_PER_LANE];
#pragma unroll
        for (int c = 0; c < COLUMNS_PER_LANE; ++c) {
          const int column = block + c * WARP_LANES + lane;
          value[c] = column < width ? grad[base + row * width + column] : T(0);
          won[c] = Max && column < width ? winner[base + row * width + column] : -1;
        }
#pragma unroll
        for (int l = 0; l < L; ++l) {
          const T factor = __shfl_sync(WHOLE_WARP, gy[l], r);
          const T dy = gaussians.y(row) - marks[l].y;
#pragma unroll
          for (int c = 0; c < COLUMNS_PER_LANE; ++c) {
            const T part = !Max || won[c] == first + l ? value[c] * factor : T(0);
            of_column[c][l] += part;
            of_column_dy[c][l] += part * dy;
          }
        }
      }
    }
#pragma unroll
    for (int c = 0; c < COLUMNS_PER_LANE; ++c) {
      const int column = block + c * WARP_LANES + lane;
#pragma unroll
      for (int l = 0; l < L; ++l) {
        const T dx = gaussians.x(column) - marks[l].x;
        const T gx = column < width ? gaussian(gaussians.falloff, dx) : T(0);
        strength[l] += of_column[c][l] * gx;
        along_x[l] += of_column[c][l] * gx * dx;
        along_y[l] += of_column_dy[c][l] * gx;
      }
    }
  }

#pragma unroll
  for (int l = 0; l < L; ++l) {
    strength[l] = reduce_lanes(strength[l], WARP_LANES, Sum());
    along_x[l] = reduce_lanes(along_x[l], WARP_LANES, Sum());
    along_y[l] = reduce_lanes(along_y[l], WARP_LANES, Sum());
    if (lane == 0 && first + l < gaussians.count) {
      const int64_t index = sample * gaussians.count + first + l;
      const T gain = T(-2) * gaussians.falloff * marks[l].weight;  // dh/dx = w e dx / sigma^2
      if (d_weights) {
        d_weights[index] = marks[l].valid ? strength[l] : T(0);
      }
      if (d_landmarks) {
        d_landmarks[2 * index] = marks[l].valid ? along_x[l] * gain : T(0);
        d_landmarks[2 * index + 1] = marks[l].valid ? along_y[l] * gain : T(0);
      }
    }
  }
}

}  // namespace pal_fast::cuda

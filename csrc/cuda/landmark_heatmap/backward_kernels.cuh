// The gradients of landmarks and weights, from that of the heatmap.
#pragma once

#include "cuda/drawing.cuh"
#include "cuda/landmark_heatmap/normalisation.cuh"
#include "cuda/landmark_heatmap/params.h"
#include "cuda/shared_layout.cuh"

namespace pal_fast::cuda {

// 1. The gradient of the heatmap before it was normalised and, for a maximum, the landmark that attains it at each
// cell: one block per sample, which recomputes the heatmap in `raw` and replaces it by the gradient.
template <typename T>
struct RawGradientShared {
  Pointer<T> factors;       // [DRAW_SCRATCH_ELEMENTS]
  Pointer<double> scratch;  // [2 * MAX_BLOCK_WARPS]

  __host__ __device__ explicit RawGradientShared(SharedLayout& layout)
      : factors(layout.allocate<T>(DRAW_SCRATCH_ELEMENTS)), scratch(layout.allocate<double>(2 * MAX_BLOCK_WARPS)) {}
};

template <typename T>
__global__ void __launch_bounds__(MAX_BLOCK_THREADS, 1)
    raw_gradient_kernel(const Gaussians<T> gaussians, const bool max,
                        const Pointer<const T> grad,  // [B, H, W]
                        const Pointer<T> raw,         // [B, H, W]
                        const Pointer<int> winner,    // [B, H, W], null unless max
                        const Normalize normalize) {
  const auto shared = allocate_shared<RawGradientShared<T>>();
  const int64_t sample = blockIdx.x;
  const int cells = gaussians.height * gaussians.width;
  const Pointer<T> map = raw + sample * cells;
  const Pointer<const T> map_grad = grad + sample * cells;
  draw(gaussians, max, sample, 0, cells, map, winner ? winner + sample * cells : winner, shared.factors);
  if (normalize == Normalize::none) {
    for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
      map[cell] = map_grad[cell];
    }
    return;
  }

  double sums[2] = {0.0, 0.0};  // sum h, sum grad * h
  double peak[1] = {-static_cast<double>(INFINITY)};
  for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
    const double h = map[cell];
    sums[0] += h;
    sums[1] += h * map_grad[cell];
    peak[0] = Maximum()(peak[0], h);
  }
  block_reduce<2>(sums, shared.scratch, Sum());
  block_reduce<1>(peak, shared.scratch, Maximum());

  // d raw = grad / D - dD * sum(grad * h) / D^2. The derivative dD of a total is 1 everywhere; that of a peak is
  // divided evenly among the cells that attain it.
  const bool peak_normalised = normalize == Normalize::peak;
  const double divisor = peak_normalised ? peak[0] : sums[0];
  double peak_cells[1] = {0.0};
  for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
    peak_cells[0] += static_cast<double>(map[cell]) == peak[0] ? 1.0 : 0.0;
  }
  block_reduce<1>(peak_cells, shared.scratch, Sum());
  const double inverse = 1.0 / divisor_or_one(divisor);
  const double divisor_term =
      divisor == 0.0 ? 0.0 : sums[1] * inverse * inverse / (peak_normalised ? peak_cells[0] : 1.0);
  for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
    const bool in_divisor = !peak_normalised || static_cast<double>(map[cell]) == peak[0];
    map[cell] = static_cast<T>(map_grad[cell] * inverse - (in_divisor ? divisor_term : 0.0));
  }
}

// 2. The gradients of landmarks and weights: a warp takes LANDMARKS_PER_WARP landmarks over the whole map, a lane
// COLUMNS_PER_LANE columns at a time. For each column it first sums grad * gy and grad * gy * dy over the rows; the
// column's factor gx multiplies these sums once. Lanes compute one row's gy each and broadcast it by shuffles.
inline constexpr int LANDMARKS_PER_WARP = 4;
inline constexpr int COLUMNS_PER_LANE = 2;
inline constexpr int GRADIENT_THREADS = 128;
inline constexpr int LANDMARKS_PER_BLOCK = GRADIENT_THREADS / WARP_SIZE * LANDMARKS_PER_WARP;

template <typename T, bool Max>
__global__ void __launch_bounds__(GRADIENT_THREADS, 1)
    landmark_gradient_kernel(const Gaussians<T> gaussians,
                             const Pointer<const T> grad,      // [B, H, W], of the heatmap before it was normalised
                             const Pointer<const int> winner,  // [B, H, W], Max only
                             const Pointer<T> d_landmarks,     // [B, K, 2], or null
                             const Pointer<T> d_weights,       // [B, K], or null
                             const int blocks_per_sample) {
  constexpr int L = LANDMARKS_PER_WARP;
  const int64_t sample = blockIdx.x / blocks_per_sample;
  const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
  const int first = (blockIdx.x % blocks_per_sample * (GRADIENT_THREADS / WARP_SIZE) + warp) * L;
  if (first >= gaussians.count) {
    return;  // all lanes of the warp
  }
  const int height = gaussians.height, width = gaussians.width;
  const int64_t base = sample * height * width;
  Landmark<T> landmarks[L];
#pragma unroll
  for (int l = 0; l < L; ++l) {
    landmarks[l] =
        first + l < gaussians.count ? load_landmark(gaussians, sample, first + l) : Landmark<T>{0, 0, 0, false};
  }

  T sum_e[L] = {}, sum_dx[L] = {}, sum_dy[L] = {};  // sums of grad e, grad e dx, grad e dy
  for (int first_column = 0; first_column < width; first_column += WARP_SIZE * COLUMNS_PER_LANE) {
    T column_sum[COLUMNS_PER_LANE][L] = {}, column_sum_dy[COLUMNS_PER_LANE][L] = {};
    for (int first_row = 0; first_row < height; first_row += WARP_SIZE) {
      T gy[L];
#pragma unroll
      for (int l = 0; l < L; ++l) {
        gy[l] = gaussian(gaussians.falloff, gaussians.y(first_row + lane) - landmarks[l].y);
      }
      const int rows = height - first_row < WARP_SIZE ? height - first_row : WARP_SIZE;
      for (int r = 0; r < rows; ++r) {
        const int row = first_row + r;
        T value[COLUMNS_PER_LANE];
        int winners[COLUMNS_PER_LANE];
#pragma unroll
        for (int c = 0; c < COLUMNS_PER_LANE; ++c) {
          const int column = first_column + c * WARP_SIZE + lane;
          value[c] = column < width ? grad[base + row * width + column] : T(0);
          winners[c] = Max && column < width ? winner[base + row * width + column] : -1;
        }
#pragma unroll
        for (int l = 0; l < L; ++l) {
          const T row_factor = __shfl_sync(FULL_WARP_MASK, gy[l], r);
          const T dy = gaussians.y(row) - landmarks[l].y;
#pragma unroll
          for (int c = 0; c < COLUMNS_PER_LANE; ++c) {
            const T term = !Max || winners[c] == first + l ? value[c] * row_factor : T(0);
            column_sum[c][l] += term;
            column_sum_dy[c][l] += term * dy;
          }
        }
      }
    }
#pragma unroll
    for (int c = 0; c < COLUMNS_PER_LANE; ++c) {
      const int column = first_column + c * WARP_SIZE + lane;
#pragma unroll
      for (int l = 0; l < L; ++l) {
        const T dx = gaussians.x(column) - landmarks[l].x;
        const T gx = column < width ? gaussian(gaussians.falloff, dx) : T(0);
        sum_e[l] += column_sum[c][l] * gx;
        sum_dx[l] += column_sum[c][l] * gx * dx;
        sum_dy[l] += column_sum_dy[c][l] * gx;
      }
    }
  }

#pragma unroll
  for (int l = 0; l < L; ++l) {
    sum_e[l] = warp_reduce(sum_e[l], WARP_SIZE, Sum());
    sum_dx[l] = warp_reduce(sum_dx[l], WARP_SIZE, Sum());
    sum_dy[l] = warp_reduce(sum_dy[l], WARP_SIZE, Sum());
    if (lane == 0 && first + l < gaussians.count) {
      const int64_t index = sample * gaussians.count + first + l;
      const T scale = T(-2) * gaussians.falloff * landmarks[l].weight;  // dh/dx = w e dx / sigma^2
      if (d_weights) {
        d_weights[index] = landmarks[l].valid ? sum_e[l] : T(0);
      }
      if (d_landmarks) {
        d_landmarks[2 * index] = landmarks[l].valid ? sum_dx[l] * scale : T(0);
        d_landmarks[2 * index + 1] = landmarks[l].valid ? sum_dy[l] * scale : T(0);
      }
    }
  }
}

}  // namespace pal_fast::cuda

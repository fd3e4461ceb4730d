// Large heatmaps that are sums in float: the product of the two matrices of `landmark_heatmap_drawing_kernels.cuh` runs
// on tensor cores, a warp 32 x 32 cells. Multiplying and adding on the other cores would take twice as long as writing
// the map does.
#pragma once

#include "gaussians.cuh"
#include "landmark_heatmap_division.cuh"
#include "landmark_heatmap_pass.h"
#include "matrix.cuh"

namespace pal_fast::cuda {

inline constexpr int MATRIX_DEPTH = 16;                        // landmarks of one instruction
inline constexpr int MATRIX_LANDMARKS = 3 * MATRIX_DEPTH;      // of a chunk
inline constexpr int MATRIX_PITCH = MATRIX_LANDMARKS / 2 + 4;  // words; lanes of a warp meet no bank twice

struct MatrixShared {
  Pointer<unsigned> high, low;  // [MATRIX_ROWS + MATRIX_COLUMNS, MATRIX_PITCH]: pairs of landmarks
  Pointer<float> marks;         // [3, MATRIX_LANDMARKS]: x, y, and the weight, 0 for what is dropped
  Pointer<float> floats;        // [MOST_WARPS]
  Pointer<double> doubles;      // [MOST_WARPS]
  Pointer<unsigned> flag;

  __device__ MatrixShared() {
    SharedLayout shared;
    high = shared.take<unsigned>((MATRIX_ROWS + MATRIX_COLUMNS) * MATRIX_PITCH);
    low = shared.take<unsigned>((MATRIX_ROWS + MATRIX_COLUMNS) * MATRIX_PITCH);
    marks = shared.take<float>(3 * MATRIX_LANDMARKS);
    floats = shared.take<float>(MOST_WARPS);
    doubles = shared.take<double>(MOST_WARPS);
    flag = shared.take<unsigned>(1);
  }

  // The same, on the host.
  [[nodiscard]] static constexpr int64_t bytes() {
    SharedLayout shared;
    shared.add((MATRIX_ROWS + MATRIX_COLUMNS) * MATRIX_PITCH, sizeof(unsigned));
    shared.add((MATRIX_ROWS + MATRIX_COLUMNS) * MATRIX_PITCH, sizeof(unsigned));
    shared.add(3 * MATRIX_LANDMARKS, sizeof(float));
    shared.add(MOST_WARPS, sizeof(float));
    shared.add(MOST_WARPS, sizeof(double));
    shared.add(1, sizeof(unsigned));
    return shared.bytes();
  }
};

// A chunk of landmarks' factors, those of `steps` instructions: rows of the tile, weighed, then its columns.
__device__ __forceinline__ void fill_matrices(const Gaussians<float>& of, int64_t sample, int first, int steps,
                                              int first_row, int first_column, float inverse_unit,
                                              const MatrixShared& shared) {
  __syncthreads();  // the last chunk may still be read
  for (int k = threadIdx.x; k < MATRIX_LANDMARKS; k += blockDim.x) {
    const Landmark<float> mark =
        first + k < of.count ? landmark(of, sample, first + k) : Landmark<float>{0.0f, 0.0f, 0.0f, false};
    shared.marks[k] = mark.x;
    shared.marks[MATRIX_LANDMARKS + k] = mark.y;
    shared.marks[2 * MATRIX_LANDMARKS + k] = mark.weight * inverse_unit;
  }
  __syncthreads();
  const int pairs = steps * MATRIX_DEPTH / 2;
  for (int index = threadIdx.x; index < (MATRIX_ROWS + MATRIX_COLUMNS) * pairs; index += blockDim.x) {
    const int line = index / pairs, pair = index % pairs;
    const bool is_row = line < MATRIX_ROWS;
    const float position = is_row ? of.y(first_row + line) : of.x(first_column + line - MATRIX_ROWS);
    Halves halves[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int k = 2 * pair + i;
      const float e = gaussian(of.falloff, position - shared.marks[(is_row ? MATRIX_LANDMARKS : 0) + k]);
      halves[i] = halves_of(is_row ? e * shared.marks[2 * MATRIX_LANDMARKS + k] : e);
    }
    shared.high[line * MATRIX_PITCH + pair] = pair_of(halves[0].high, halves[1].high);
    shared.low[line * MATRIX_PITCH + pair] = pair_of(halves[0].low, halves[1].low);
  }
  __syncthreads();
}

// A power of two near the sample's largest weight, in every thread: weights are divided by it, so that products of
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

// A template only so that it is compiled once, where it is used.
template <typename T>
__global__ void __launch_bounds__(MOST_THREADS, 2)
    matrix_heatmap_kernel(const Gaussians<T> gaussians,
                          const Pointer<T> heatmap,         // [B, H, W]
                          const Pointer<double> divisors,   // [B, tiles], or null
                          const Pointer<unsigned> tickets,  // [B]
                          const Normalize normalize, const int tiles, const int tiles_along_columns) {
  static_assert(std::is_same_v<T, float>);
  constexpr int M = 2, N = 4;  // instructions of a warp along rows and columns
  const MatrixShared shared;
  const int64_t sample = blockIdx.x / tiles;
  const int tile = blockIdx.x % tiles;
  const int first_row = tile / tiles_along_columns * MATRIX_ROWS;
  const int first_column = tile % tiles_along_columns * MATRIX_COLUMNS;
  const int lane = threadIdx.x % WARP_LANES, warp = threadIdx.x / WARP_LANES;
  const int g = lane / 4, t = lane % 4;
  const int warp_row = warp / 4 * 32, warp_column = warp % 4 * 32;

  // The product of the high parts, and what the low ones add: high * low and low * high. low * low is below 2^-22.
  float product[M][N][4] = {}, correction[M][N][4] = {};
  const float unit = weight_unit(gaussians, sample, shared.floats);
  for (int first = 0; first < gaussians.count; first += MATRIX_LANDMARKS) {
    const int steps = min((gaussians.count - first + MATRIX_DEPTH - 1) / MATRIX_DEPTH, MATRIX_LANDMARKS / MATRIX_DEPTH);
    fill_matrices(gaussians, sample, first, steps, first_row, first_column, inverse_of_unit(unit), shared);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      const int word = step * MATRIX_DEPTH / 2 + t;
      unsigned high[N][2], low[N][2];
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const int at = (MATRIX_ROWS + warp_column + n * 8 + g) * MATRIX_PITCH + word;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          high[n][i] = shared.high[at + 4 * i];
          low[n][i] = shared.low[at + 4 * i];
        }
      }
#pragma unroll
      for (int m = 0; m < M; ++m) {
        unsigned row_high[4], row_low[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = (warp_row + m * 16 + g + i % 2 * 8) * MATRIX_PITCH + word + i / 2 * 4;
          row_high[i] = shared.high[at];
          row_low[i] = shared.low[at];
        }
#pragma unroll
        for (int n = 0; n < N; ++n) {
          multiply_add(product[m][n], row_high, high[n]);
          multiply_add(correction[m][n], row_high, low[n]);
          multiply_add(correction[m][n], row_low, high[n]);
        }
      }
    }
  }

  // Its part of the divisor, and the division if there is no other tile.
  const int height = gaussians.height, width = gaussians.width;
  const bool peak = normalize == Normalize::peak;
  double divisor[1] = {peak ? -static_cast<double>(INFINITY) : 0.0};
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float h = (product[m][n][i] + correction[m][n][i] * (1.0f / LOW_SCALE)) * unit;
        product[m][n][i] = h;
        const int row = first_row + warp_row + m * 16 + g + i / 2 * 8;
        const int column = first_column + warp_column + n * 8 + 2 * t + i % 2;
        if (normalize != Normalize::none && row < height && column < width) {
          divisor[0] = peak ? Maximum()(divisor[0], static_cast<double>(h)) : divisor[0] + h;
        }
      }
    }
  }
  float by = 1;
  if (normalize != Normalize::none) {
    peak ? reduce_block<1>(divisor, shared.doubles, Maximum()) : reduce_block<1>(divisor, shared.doubles, Sum());
    if (tiles == 1) {
      by = static_cast<float>(divisor_or_one(divisor[0]));
    } else if (threadIdx.x == 0) {
      divisors[sample * tiles + tile] = divisor[0];
    }
  }

  // Neighbouring lanes swap halves, and each writes four columns of one row: of g if t is even, of g + 8 if it is odd.
  const Pointer<float> map = heatmap + sample * height * width;
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const bool odd = t % 2 != 0;
      const float (&mine)[4] = product[m][n];
      const float first = __shfl_xor_sync(WHOLE_WARP, odd ? mine[0] : mine[2], 1);
      const float second = __shfl_xor_sync(WHOLE_WARP, odd ? mine[1] : mine[3], 1);
      float four[4] = {odd ? first : mine[0], odd ? second : mine[1], odd ? mine[2] : first, odd ? mine[3] : second};
      if (normalize != Normalize::none && tiles == 1) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          four[i] /= by;
        }
      }
      const int row = first_row + warp_row + m * 16 + g + (odd ? 8 : 0);
      const int column = first_column + warp_column + n * 8 + t / 2 * 4;
      if (row < height && column < width) {
        const Pointer<float> to = map + (row * width + column);
        if (width % 4 == 0) {
          store_vector<float>(to, four);
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (column + i < width) {
              to[i] = four[i];
            }
          }
        }
      }
    }
  }

  // The last tile of a map divides all of it.
  if (normalize != Normalize::none && tiles > 1 && last_block(tickets + sample, tiles, shared.flag)) {
    divide_map<float>(map, height * width, divisors + sample * tiles, tiles, peak, shared.doubles);
  }
}

}  // namespace pal_fast::cuda

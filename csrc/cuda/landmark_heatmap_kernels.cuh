// Heatmaps of landmarks and their gradients. A sum of Gaussians is a product of two thin matrices, [H, K] by [K, W]: a
// tile of the map costs K (rows + columns) exponentials, in shared memory, not K rows columns. Nothing is atomic but
// the count of blocks that are done.
#pragma once

#include "gaussians.cuh"
#include "landmark_heatmap_pass.h"
#include "matrix.cuh"

namespace pal_fast::cuda {

// What `normalize` divides by, 1 in place of 0.
[[nodiscard]] __device__ __forceinline__ double divisor_or_one(double divisor) {
  return divisor == 0.0 ? 1.0 : divisor;
}

// 1. Small maps: a block draws a whole one.
template <typename T>
[[nodiscard]] constexpr int64_t whole_map_shared() {
  SharedLayout layout;
  layout.add(DRAWING_ELEMENTS, sizeof(T));
  layout.add(MOST_WARPS, sizeof(double));
  return layout.bytes();
}

template <typename T>
__global__ void __launch_bounds__(MOST_THREADS, 1) whole_heatmap_kernel(const Gaussians<T> gaussians, const bool max,
                                                                        const Pointer<T> heatmap,  // [B, H, W]
                                                                        const Normalize normalize) {
  SharedLayout shared;
  const Pointer<T> factors = shared.take<T>(DRAWING_ELEMENTS);
  const Pointer<double> scratch = shared.take<double>(MOST_WARPS);
  const int64_t sample = blockIdx.x;
  const int cells = gaussians.height * gaussians.width;
  const Pointer<T> map = heatmap + sample * cells;
  draw(gaussians, max, sample, 0, cells, map, Pointer<int>(nullptr), factors);
  if (normalize == Normalize::none) {
    return;
  }
  // Every thread reads the cells that it wrote.
  double divisor[1] = {normalize == Normalize::peak ? -static_cast<double>(INFINITY) : 0.0};
  for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
    const double value = map[cell];
    divisor[0] = normalize == Normalize::peak ? Maximum()(divisor[0], value) : divisor[0] + value;
  }
  normalize == Normalize::peak ? reduce_block<1>(divisor, scratch, Maximum())
                               : reduce_block<1>(divisor, scratch, Sum());
  const T by = static_cast<T>(divisor_or_one(divisor[0]));
  for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
    map[cell] /= by;
  }
}

// 2. Large maps, maxima and double: a block draws a tile, a thread TILE_ROWS x TILE_COLUMNS cells of it in registers.
inline constexpr int TILE_LANDMARKS = 16;

[[nodiscard]] constexpr int64_t tile_factors(int lanes) {
  return TILE_LANDMARKS * (lanes * TILE_COLUMNS + MOST_THREADS / lanes * TILE_ROWS);
}
template <typename T>
[[nodiscard]] constexpr int64_t tile_shared(int lanes) {
  SharedLayout layout;
  layout.add(tile_factors(lanes), sizeof(T));
  layout.add(MOST_WARPS, sizeof(double));
  layout.add(1, sizeof(unsigned));
  return layout.bytes();
}

// Divides a whole map that other blocks have drawn. divisors [tiles].
template <typename T>
__device__ void divide_map(Pointer<T> map, int cells, Pointer<const double> divisors, int tiles, bool peak,
                           Pointer<double> scratch) {
  double divisor[1] = {peak ? -static_cast<double>(INFINITY) : 0.0};
  for (int tile = threadIdx.x; tile < tiles; tile += blockDim.x) {
    divisor[0] = peak ? Maximum()(divisor[0], divisors[tile]) : divisor[0] + divisors[tile];
  }
  peak ? reduce_block<1>(divisor, scratch, Maximum()) : reduce_block<1>(divisor, scratch, Sum());
  const T by = static_cast<T>(divisor_or_one(divisor[0]));
#pragma unroll 8
  for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
    map[cell] /= by;
  }
}

template <typename T, bool Max>
__global__ void __launch_bounds__(MOST_THREADS, 1)
    tiled_heatmap_kernel(const Gaussians<T> gaussians,
                         const Pointer<T> heatmap,         // [B, H, W]
                         const Pointer<double> divisors,   // [B, tiles], or null
                         const Pointer<unsigned> tickets,  // [B]
                         const Normalize normalize, const int lanes, const int tiles, const int tiles_along_columns) {
  const int columns = lanes * TILE_COLUMNS, rows = MOST_THREADS / lanes * TILE_ROWS;
  SharedLayout shared;
  const Pointer<T> along_x = shared.take<T>(tile_factors(lanes));
  const Pointer<T> along_y = along_x + TILE_LANDMARKS * columns;
  const Pointer<double> scratch = shared.take<double>(MOST_WARPS);
  const Pointer<unsigned> flag = shared.take<unsigned>(1);

  const int64_t sample = blockIdx.x / tiles;
  const int tile = blockIdx.x % tiles;
  const int first_row = tile / tiles_along_columns * rows, first_column = tile % tiles_along_columns * columns;
  const int thread_row = static_cast<int>(threadIdx.x) / lanes * TILE_ROWS;
  const int thread_column = static_cast<int>(threadIdx.x) % lanes * TILE_COLUMNS;

  // The tile.
  T h[TILE_ROWS][TILE_COLUMNS];
#pragma unroll
  for (int i = 0; i < TILE_ROWS; ++i) {
#pragma unroll
    for (int j = 0; j < TILE_COLUMNS; ++j) {
      h[i][j] = Max ? static_cast<T>(-INFINITY) : T(0);
    }
  }
  for (int first = 0; first < gaussians.count; first += TILE_LANDMARKS) {
    __syncthreads();
    fill_factors(gaussians, Max, sample, first, TILE_LANDMARKS, first_column, columns, first_row, rows, along_x,
                 along_y);
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < TILE_LANDMARKS; ++k) {
      T x[TILE_COLUMNS], y[TILE_ROWS];
#pragma unroll
      for (int j = 0; j < TILE_COLUMNS; ++j) {
        x[j] = along_x[k * columns + thread_column + j];
      }
#pragma unroll
      for (int i = 0; i < TILE_ROWS; ++i) {
        y[i] = along_y[k * rows + thread_row + i];
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

  // Its part of the divisor, and the division if there is no other tile.
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
  T by = 1;
  if (normalize != Normalize::none) {
    peak ? reduce_block<1>(divisor, scratch, Maximum()) : reduce_block<1>(divisor, scratch, Sum());
    if (tiles == 1) {
      by = static_cast<T>(divisor_or_one(divisor[0]));
    } else if (threadIdx.x == 0) {
      divisors[sample * tiles + tile] = divisor[0];
    }
  }

  // Rows of whole 16-byte vectors are written as such.
  static_assert(TILE_COLUMNS % VECTOR<T> == 0);
  const Pointer<T> map = heatmap + sample * height * width;
#pragma unroll
  for (int i = 0; i < TILE_ROWS; ++i) {
    const int row = first_row + thread_row + i;
#pragma unroll
    for (int j = 0; j < TILE_COLUMNS; j += VECTOR<T>) {
      const int column = first_column + thread_column + j;
      if (row >= height) {
        continue;
      }
      T vector[VECTOR<T>];
#pragma unroll
      for (int e = 0; e < VECTOR<T>; ++e) {
        vector[e] = normalize != Normalize::none && tiles == 1 ? h[i][j + e] / by : h[i][j + e];
      }
      if (width % VECTOR<T> == 0) {
        if (column < width) {
          store_vector<T>(map + row * width + column, vector);
        }
      } else {
        for (int e = 0; e < VECTOR<T>; ++e) {
          if (column + e < width) {
            map[row * width + column + e] = vector[e];
          }
        }
      }
    }
  }

  // The last tile of a map divides all of it.
  if (normalize != Normalize::none && tiles > 1 && last_block(tickets + sample, tiles, flag)) {
    divide_map<T>(map, height * width, divisors + sample * tiles, tiles, peak, scratch);
  }
}

// 3. The same for sums in float: the product of the factors runs on tensor cores, a warp 32 x 32 cells. Multiplying and
// adding on the other cores would take twice as long as writing the map does.
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

// 4. The gradient of the heatmap before it was normalised, and each cell's winner: a block a sample.
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
  // The heatmap again, kept in raw. Every thread reads the cells that it wrote.
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

// 5. The gradients of landmarks and weights: a warp takes LANDMARKS_PER_WARP landmarks over the whole map. For a column
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

// Draws cells of a sample's heatmap by one block, from separable factors in shared memory.
#pragma once

#include "cuda/gaussians.cuh"

namespace pal_fast::cuda {

// Rows of a column that a thread computes together: their factors are one 16-byte vector.
template <typename T>
inline constexpr int DRAW_ROWS_PER_THREAD = VECTOR_SIZE<T>;

// Elements of shared memory that draw() needs: at least one landmark's data and factors for the widest window, and the
// partial results of all threads.
inline constexpr int DRAW_SCRATCH_ELEMENTS = 2304;
static_assert(DRAW_SCRATCH_ELEMENTS >= MAX_BLOCK_THREADS + DRAW_ROWS_PER_THREAD<float> + LANDMARK_ELEMENTS);
static_assert(DRAW_SCRATCH_ELEMENTS >= DRAW_ROWS_PER_THREAD<float> * MAX_BLOCK_THREADS);

// Writes cells [begin, end) of a sample's map to out[0, end - begin), not normalised: the sum of the Gaussians or their
// maximum; and, if winner is not null, the index of the landmark that attains each cell's maximum, or -1. Without a
// valid landmark a cell is 0. factors: DRAW_SCRATCH_ELEMENTS of shared memory. Ends with a barrier: all threads see all
// cells.
//
// The map is covered by windows, nearly always a single one. A window has one thread for each group of
// DRAW_ROWS_PER_THREAD cells of a column; if it is so small that threads are left over, they split its landmarks and
// their partial results are combined at the end. Unroll: of the loop over landmarks.
template <int Unroll = 4, typename T>
__device__ void draw(const Gaussians<T>& gaussians, bool max, int64_t sample, int begin, int end, Pointer<T> out,
                     Pointer<int> winner, Pointer<T> factors) {
  constexpr int ROWS = DRAW_ROWS_PER_THREAD<T>;
  const int threads = blockDim.x, thread = threadIdx.x;
  const T lowest = max ? static_cast<T>(-INFINITY) : T(0);
  const int last_row = (end - 1) / gaussians.width;
#pragma unroll 1
  for (int left = 0; left < gaussians.width; left += threads) {
    const int columns = min(threads, gaussians.width - left), max_rows = threads / columns * ROWS;
#pragma unroll 1
    for (int top = begin / gaussians.width; top <= last_row; top += max_rows) {
      const int rows = min(max_rows, (last_row - top + ROWS) / ROWS * ROWS);
      const int groups = rows / ROWS * columns, landmark_splits = winner ? 1 : threads / groups;
      const int group = thread % groups, landmark_split = thread / groups;
      const int row = group / columns * ROWS, column = group % columns;
      T best[ROWS];
      int best_landmark[ROWS];
#pragma unroll
      for (int i = 0; i < ROWS; ++i) {
        best[i] = lowest;
        best_landmark[i] = -1;
      }

      // 1. The thread's split of the landmarks, chunk by chunk.
      const int chunk = min(DRAW_SCRATCH_ELEMENTS / (columns + rows + LANDMARK_ELEMENTS), gaussians.count);
      const Pointer<T> along_y = factors, along_x = along_y + chunk * rows, landmark_data = along_x + chunk * columns;
#pragma unroll 1
      for (int first = 0; first < gaussians.count; first += chunk) {
        const int count = min(chunk, gaussians.count - first);
        fill_factors(gaussians, max, sample, first, count, left, columns, top, rows, along_x, along_y, landmark_data);
#pragma unroll Unroll
        for (int k = landmark_split < landmark_splits ? landmark_split : count; k < count; k += landmark_splits) {
          const T x = along_x[k * columns + column];
          T y[ROWS];
          load_shared<ROWS, T>(along_y + (k * rows + row), y);
#pragma unroll
          for (int i = 0; i < ROWS; ++i) {
            if (!max) {
              best[i] += y[i] * x;
            } else if (y[i] * x > best[i]) {  // ties go to the first landmark
              best[i] = y[i] * x;
              best_landmark[i] = first + k;
            }
          }
        }
      }

      // 2. Combine the splits, in their order.
      if (landmark_splits > 1) {
        __syncthreads();  // the factors may still be read
        if (landmark_split < landmark_splits) {
#pragma unroll
          for (int i = 0; i < ROWS; ++i) {
            factors[(landmark_split * ROWS + i) * groups + group] = best[i];
          }
        }
        __syncthreads();
#pragma unroll 1
        for (int other = 1; landmark_split == 0 && other < landmark_splits; ++other) {
#pragma unroll
          for (int i = 0; i < ROWS; ++i) {
            const T partial = factors[(other * ROWS + i) * groups + group];
            best[i] = max ? (partial > best[i] ? partial : best[i]) : best[i] + partial;
          }
        }
      }
      if (landmark_split == 0) {
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
          const int cell = (top + row + i) * gaussians.width + left + column;
          if (top + row + i <= last_row && cell >= begin && cell < end) {
            out[cell - begin] = max && best[i] == lowest ? T(0) : best[i];
            if (winner) {
              winner[cell - begin] = best_landmark[i];
            }
          }
        }
      }
    }
  }
  __syncthreads();
}

}  // namespace pal_fast::cuda

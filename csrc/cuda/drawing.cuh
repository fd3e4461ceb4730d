// A block draws cells of a sample's heatmap.
#pragma once

#include "gaussians.cuh"

namespace pal_fast::cuda {

// Cells below each other that a thread draws together: 16 bytes of factors.
template <typename T>
inline constexpr int DRAWN_ROWS = VECTOR<T>;

// Elements of shared memory that draw() has: for what a landmark takes of the widest window, and for what the threads
// leave for each other.
inline constexpr int DRAWING_ELEMENTS = 2304;
static_assert(DRAWING_ELEMENTS >= MOST_THREADS + DRAWN_ROWS<float> + MARK_ELEMENTS);
static_assert(DRAWING_ELEMENTS >= DRAWN_ROWS<float> * MOST_THREADS);

// Cells [begin, end) of a sample's map into out[0, end - begin), not normalised: a sum of Gaussians or their maximum;
// and, if winner is not null, the landmark that a maximum took at each, -1 for none. A cell that no landmark reaches is
// 0. Ends with a barrier: all threads see all cells.
//
// A window of the map at a time, nearly always all of it: as many columns and rows as there are threads for, each with
// a few cells below each other. Where it is small, threads share its landmarks. AT_ONCE: of how many landmarks a thread
// loads the factors together.
template <int AT_ONCE = 4, typename T>
__device__ void draw(const Gaussians<T>& of, bool max, int64_t sample, int begin, int end, Pointer<T> out,
                     Pointer<int> winner, Pointer<T> factors) {
  constexpr int ROWS = DRAWN_ROWS<T>;
  const int threads = blockDim.x, thread = threadIdx.x;
  const T lowest = max ? static_cast<T>(-INFINITY) : T(0);
  const int last_row = (end - 1) / of.width;
#pragma unroll 1
  for (int left = 0; left < of.width; left += threads) {
    const int columns = min(threads, of.width - left), most_rows = threads / columns * ROWS;
#pragma unroll 1
    for (int top = begin / of.width; top <= last_row; top += most_rows) {
      const int rows = min(most_rows, (last_row - top + ROWS) / ROWS * ROWS);
      const int slots = rows / ROWS * columns, shares = winner ? 1 : threads / slots;
      const int slot = thread % slots, share = thread / slots;
      const int row = slot / columns * ROWS, column = slot % columns;
      T best[ROWS];
      int won[ROWS];
#pragma unroll
      for (int i = 0; i < ROWS; ++i) {
        best[i] = lowest;
        won[i] = -1;
      }

      // 1. The window's share of the landmarks, a chunk of them at a time.
      const int chunk = min(DRAWING_ELEMENTS / (columns + rows + MARK_ELEMENTS), of.count);
      const Pointer<T> along_y = factors, along_x = along_y + chunk * rows, marks = along_x + chunk * columns;
#pragma unroll 1
      for (int first = 0; first < of.count; first += chunk) {
        const int now = min(chunk, of.count - first);
        fill_factors(of, max, sample, first, now, left, columns, top, rows, along_x, along_y, marks);
#pragma unroll AT_ONCE
        for (int k = share < shares ? share : now; k < now; k += shares) {
          const T x = along_x[k * columns + column];
          T y[ROWS];
          load_shared<ROWS, T>(along_y + (k * rows + row), y);
#pragma unroll
          for (int i = 0; i < ROWS; ++i) {
            if (!max) {
              best[i] += y[i] * x;
            } else if (y[i] * x > best[i]) {  // a tie stays with the first
              best[i] = y[i] * x;
              won[i] = first + k;
            }
          }
        }
      }

      // 2. The shares, in their order.
      if (shares > 1) {
        __syncthreads();  // the factors may still be read
        if (share < shares) {
#pragma unroll
          for (int i = 0; i < ROWS; ++i) {
            factors[(share * ROWS + i) * slots + slot] = best[i];
          }
        }
        __syncthreads();
#pragma unroll 1
        for (int other = 1; share == 0 && other < shares; ++other) {
#pragma unroll
          for (int i = 0; i < ROWS; ++i) {
            const T more = factors[(other * ROWS + i) * slots + slot];
            best[i] = max ? (more > best[i] ? more : best[i]) : best[i] + more;
          }
        }
      }
      if (share == 0) {
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
          const int cell = (top + row + i) * of.width + left + column;
          if (top + row + i <= last_row && cell >= begin && cell < end) {
            out[cell - begin] = max && best[i] == lowest ? T(0) : best[i];
            if (winner) {
              winner[cell - begin] = won[i];
            }
          }
        }
      }
    }
  }
  __syncthreads();
}

}  // namespace pal_fast::cuda

// The shared memory of the forward that sums over channels.
#pragma once

#include "cuda/drawing.cuh"
#include "cuda/shared_layout.cuh"

namespace pal_fast::cuda {

// Whether the summed map of a sample fits in shared memory, of which a kernel has 48 KiB without opting in to more;
// otherwise it stays in global memory.
template <typename T>
[[nodiscard]] __host__ __device__ constexpr bool map_fits_shared(int64_t cells) {
  return cells <= 8192 / static_cast<int64_t>(sizeof(T));
}

template <typename S>
struct MapShared {
  using T = typename ComputeType<S>::type;

  Pointer<T> sums;                 // [threads * V]: the threads' sums of a row sweep; same memory as factors
  Pointer<T> scratch;              // [MAX_BLOCK_THREADS]
  Pointer<T> map;                  // [cells] if map_fits_shared
  Pointer<T> factors;              // [DRAW_SCRATCH_ELEMENTS], if there are landmarks
  Pointer<double> double_scratch;  // [3 * MAX_BLOCK_WARPS]
  Pointer<double> result;          // [8]: values that thread 0 broadcasts
  Pointer<int> valid_landmarks;    // [MAX_BLOCK_THREADS]: each thread's share of their number
  Pointer<unsigned> flag;

  // rows: whether the block, of `threads` threads, sweeps rows.
  __host__ __device__ MapShared(SharedLayout& layout, int64_t cells, bool landmarks, bool rows, int64_t threads) {
    const int64_t sums_elements = rows ? threads * VECTOR_SIZE<S> : 0;
    const int64_t elements = landmarks && DRAW_SCRATCH_ELEMENTS > sums_elements ? DRAW_SCRATCH_ELEMENTS : sums_elements;
    sums = factors = layout.allocate<T>(elements);
    scratch = layout.allocate<T>(MAX_BLOCK_THREADS);
    map = layout.allocate<T>(map_fits_shared<T>(cells) ? cells : 0);
    double_scratch = layout.allocate<double>(3 * MAX_BLOCK_WARPS);
    result = layout.allocate<double>(8);
    valid_landmarks = layout.allocate<int>(MAX_BLOCK_THREADS);
    flag = layout.allocate<unsigned>(1);
  }
};

}  // namespace pal_fast::cuda

// The shared memory of the forward that sums over channels.
#pragma once

#include <algorithm>

#include "cuda/drawing.cuh"

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
  Pointer<int> int_scratch;        // [MAX_BLOCK_WARPS]
  Pointer<unsigned> flag;

  __device__ MapShared(int cells, bool in_shared, bool landmarks, bool rows) {
    const int64_t sums_elements = rows ? static_cast<int64_t>(blockDim.x) * VECTOR_SIZE<S> : 0;
    const int64_t elements = landmarks && DRAW_SCRATCH_ELEMENTS > sums_elements ? DRAW_SCRATCH_ELEMENTS : sums_elements;
    SharedLayout shared;
    sums = factors = shared.allocate<T>(elements);
    scratch = shared.allocate<T>(MAX_BLOCK_THREADS);
    map = shared.allocate<T>(in_shared ? cells : 0);
    double_scratch = shared.allocate<double>(3 * MAX_BLOCK_WARPS);
    result = shared.allocate<double>(8);
    int_scratch = shared.allocate<int>(MAX_BLOCK_WARPS);
    flag = shared.allocate<unsigned>(1);
  }

  // The bytes of all arrays, for the launch.
  [[nodiscard]] static int64_t bytes(int64_t cells, bool landmarks, bool rows, int64_t threads) {
    const int64_t sums_elements = rows ? threads * VECTOR_SIZE<S> : 0;
    const int64_t elements = landmarks ? std::max<int64_t>(DRAW_SCRATCH_ELEMENTS, sums_elements) : sums_elements;
    const bool in_shared = map_fits_shared<T>(cells);
    SharedLayout shared;
    shared.add(elements, sizeof(T));
    shared.add(MAX_BLOCK_THREADS, sizeof(T));
    shared.add(in_shared ? cells : 0, sizeof(T));
    shared.add(3 * MAX_BLOCK_WARPS, sizeof(double));
    shared.add(8, sizeof(double));
    shared.add(MAX_BLOCK_WARPS, sizeof(int));
    shared.add(1, sizeof(unsigned));
    return shared.bytes();
  }
};

}  // namespace pal_fast::cuda

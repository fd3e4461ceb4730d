// The shared memory of the forward that sums over channels, and which maps it holds.
#pragma once

#include <algorithm>

#include "drawing.cuh"

namespace pal_fast::cuda {

// Whether a map's sums lie in shared memory, of which a launch has 48 KiB without asking.
template <typename T>
[[nodiscard]] __host__ __device__ constexpr bool summed_in_shared(int64_t cells) {
  return cells <= 8192 / static_cast<int64_t>(sizeof(T));
}

// Where the arrays of a block lie: the sweep's sums make way for map and heatmap.
template <typename S>
struct MapShared {
  using T = typename Computing<S>::type;

  Pointer<T> sums;          // [threads * V]
  Pointer<T> scratch;       // [MOST_THREADS]
  Pointer<T> map;           // [cells], of a small map
  Pointer<T> factors;       // [DRAWING_ELEMENTS], if there are landmarks
  Pointer<double> doubles;  // [3 * MOST_WARPS]
  Pointer<double> result;   // [8]: what one thread finds out for all
  Pointer<int> integers;    // [MOST_WARPS]
  Pointer<unsigned> flag;

  __device__ MapShared(int cells, bool small, bool landmarks, bool rows) {
    // The factors share their place with the sums.
    const int64_t sums_elements = rows ? static_cast<int64_t>(blockDim.x) * VECTOR<S> : 0;
    const int64_t elements = landmarks && DRAWING_ELEMENTS > sums_elements ? DRAWING_ELEMENTS : sums_elements;
    SharedLayout shared;
    sums = factors = shared.take<T>(elements);
    scratch = shared.take<T>(MOST_THREADS);
    map = shared.take<T>(small ? cells : 0);
    doubles = shared.take<double>(3 * MOST_WARPS);
    result = shared.take<double>(8);
    integers = shared.take<int>(MOST_WARPS);
    flag = shared.take<unsigned>(1);
  }

  // The same, on the host.
  [[nodiscard]] static int64_t bytes(int64_t cells, bool landmarks, bool rows, int64_t threads) {
    const int64_t sums_elements = rows ? threads * VECTOR<S> : 0;
    const int64_t elements = landmarks ? std::max<int64_t>(DRAWING_ELEMENTS, sums_elements) : sums_elements;
    const bool small = summed_in_shared<T>(cells);
    SharedLayout shared;
    shared.add(elements, sizeof(T));
    shared.add(MOST_THREADS, sizeof(T));
    shared.add(small ? cells : 0, sizeof(T));
    shared.add(3 * MOST_WARPS, sizeof(double));
    shared.add(8, sizeof(double));
    shared.add(MOST_WARPS, sizeof(int));
    shared.add(1, sizeof(unsigned));
    return shared.bytes();
  }
};

}  // namespace pal_fast::cuda

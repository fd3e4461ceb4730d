// Heatmaps are divided by their total or their peak.
#pragma once

#include "block.cuh"
#include "memory.cuh"

namespace pal_fast::cuda {

// What `normalize` divides by, 1 in place of 0.
[[nodiscard]] __device__ __forceinline__ double divisor_or_one(double divisor) {
  return divisor == 0.0 ? 1.0 : divisor;
}

// What of the divisor lies in rows [top, bottom) and the first `columns` columns of a map that this block has drawn, in
// every thread. Begins with a barrier.
template <typename T>
[[nodiscard]] __device__ double divisor_of_tile(Pointer<const T> map, int width, int top, int bottom, int columns,
                                                bool peak, Pointer<double> scratch) {
  const int warps = blockDim.x / WARP_LANES;
  double divisor[1] = {peak ? -static_cast<double>(INFINITY) : 0.0};
  __syncthreads();
  for (int row = top + static_cast<int>(threadIdx.x) / WARP_LANES; row < bottom; row += warps) {
#pragma unroll 4
    for (int column = threadIdx.x % WARP_LANES; column < columns; column += WARP_LANES) {
      const double cell = map[static_cast<int64_t>(row) * width + column];
      divisor[0] = peak ? Maximum()(divisor[0], cell) : divisor[0] + cell;
    }
  }
  peak ? reduce_block<1>(divisor, scratch, Maximum()) : reduce_block<1>(divisor, scratch, Sum());
  return divisor[0];
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
  constexpr int U = 8;  // cells that a thread has in flight
  for (int first = threadIdx.x; first < cells; first += U * blockDim.x) {
    T value[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int cell = first + u * static_cast<int>(blockDim.x);
      value[u] = cell < cells ? map[cell] : T(0);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int cell = first + u * static_cast<int>(blockDim.x);
      if (cell < cells) {
        map[cell] = value[u] / by;
      }
    }
  }
}

}  // namespace pal_fast::cuda

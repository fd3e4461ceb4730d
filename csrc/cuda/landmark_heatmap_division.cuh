// Heatmaps are divided by their total or their peak.
#pragma once

#include "block.cuh"
#include "memory.cuh"

namespace pal_fast::cuda {

// What `normalize` divides by, 1 in place of 0.
[[nodiscard]] __device__ __forceinline__ double divisor_or_one(double divisor) {
  return divisor == 0.0 ? 1.0 : divisor;
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

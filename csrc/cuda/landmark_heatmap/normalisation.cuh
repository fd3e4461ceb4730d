// Normalisation of heatmaps: division by their total or their peak.
#pragma once

#include "cuda/block.cuh"
#include "cuda/memory.cuh"

namespace pal_fast::cuda {

// The divisor, or 1 if it is 0.
[[nodiscard]] __device__ __forceinline__ double divisor_or_one(double divisor) {
  return divisor == 0.0 ? 1.0 : divisor;
}

// The partial divisor (maximum or sum) of rows [top, bottom) and the first `columns` columns of a map that this block
// has written, returned to every thread. Begins with a barrier.
template <typename T>
[[nodiscard]] __device__ double reduce_tile_divisor(Pointer<const T> map, int width, int top, int bottom, int columns,
                                                    bool peak, Pointer<double> scratch) {
  const int warps = blockDim.x / WARP_SIZE;
  double divisor[1] = {peak ? -static_cast<double>(INFINITY) : 0.0};
  __syncthreads();
  for (int row = top + static_cast<int>(threadIdx.x) / WARP_SIZE; row < bottom; row += warps) {
#pragma unroll 4
    for (int column = threadIdx.x % WARP_SIZE; column < columns; column += WARP_SIZE) {
      const double cell = map[static_cast<int64_t>(row) * width + column];
      divisor[0] = peak ? Maximum()(divisor[0], cell) : divisor[0] + cell;
    }
  }
  peak ? block_reduce<1>(divisor, scratch, Maximum()) : block_reduce<1>(divisor, scratch, Sum());
  return divisor[0];
}

// value / divisor for many values of one divisor: in float by its reciprocal and a correction by the remainder,
// which is correctly rounded unless intermediate digits underflow.
template <typename T>
struct Quotient {
  T divisor, inverse;
  bool uses_inverse;

  __device__ __forceinline__ explicit Quotient(T given) : divisor(given), inverse(T(1) / given) {
    constexpr float MIN_DIVISOR = 0x1p-100f, MAX_DIVISOR = 0x1p100f;
    uses_inverse = std::is_same_v<T, float> && fabs(given) > T(MIN_DIVISOR) && fabs(given) < T(MAX_DIVISOR);
  }
  [[nodiscard]] __device__ __forceinline__ T operator()(T value) const {
    if (!uses_inverse) {
      return value / divisor;
    }
    const T quotient = value * inverse;
    return fma(fma(-quotient, divisor, value), inverse, quotient);
  }
};

// Divides a whole map, of which other blocks have written tiles, by the divisor that the tiles' partial divisors
// [tiles] combine to.
template <typename T>
__device__ void normalise_map(Pointer<T> map, int cells, Pointer<const double> divisors, int tiles, bool peak,
                              Pointer<double> scratch) {
  double divisor[1] = {peak ? -static_cast<double>(INFINITY) : 0.0};
  for (int tile = threadIdx.x; tile < tiles; tile += blockDim.x) {
    divisor[0] = peak ? Maximum()(divisor[0], divisors[tile]) : divisor[0] + divisors[tile];
  }
  peak ? block_reduce<1>(divisor, scratch, Maximum()) : block_reduce<1>(divisor, scratch, Sum());
  const Quotient<T> quotient(static_cast<T>(divisor_or_one(divisor[0])));
  const auto divide_cells = [&]<int V>() {
    constexpr int U = 16 / V;  // vectors that a thread has in flight
    const int64_t step = V * static_cast<int64_t>(blockDim.x);
    for (int64_t first = V * static_cast<int64_t>(threadIdx.x); first < cells; first += U * step) {
      Vector<T, V> loaded[U];
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (first + u * step < cells) {
          loaded[u] = load_vector<T, V>(map + (first + u * step));
        }
      }
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (first + u * step < cells) {
          T value[V];
          loaded[u].widen(value);
#pragma unroll
          for (int i = 0; i < V; ++i) {
            value[i] = quotient(value[i]);
          }
          store_vector<T>(map + (first + u * step), value);
        }
      }
    }
  };
  constexpr int V = VECTOR_SIZE<T>;
  if (is_vector_aligned(map) && cells % V == 0) {
    divide_cells.template operator()<V>();
  } else {
    divide_cells.template operator()<1>();
  }
}

}  // namespace pal_fast::cuda

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

// value / divisor, where a million cells have the same divisor: in float by its reciprocal and what that leaves, which
// is the correctly rounded quotient but for some whose digits underflow.
template <typename T>
struct Quotient {
  T divisor, inverse;
  bool by_inverse;

  __device__ __forceinline__ explicit Quotient(T by) : divisor(by), inverse(T(1) / by) {
    constexpr float LEAST = 0x1p-100f, MOST = 0x1p100f;
    by_inverse = std::is_same_v<T, float> && fabs(by) > T(LEAST) && fabs(by) < T(MOST);
  }
  [[nodiscard]] __device__ __forceinline__ T operator()(T value) const {
    if (!by_inverse) {
      return value / divisor;
    }
    const T quotient = value * inverse;
    return fma(fma(-quotient, divisor, value), inverse, quotient);
  }
};

// Divides a whole map that other blocks have drawn. divisors [tiles].
template <typename T>
__device__ void divide_map(Pointer<T> map, int cells, Pointer<const double> divisors, int tiles, bool peak,
                           Pointer<double> scratch) {
  double divisor[1] = {peak ? -static_cast<double>(INFINITY) : 0.0};
  for (int tile = threadIdx.x; tile < tiles; tile += blockDim.x) {
    divisor[0] = peak ? Maximum()(divisor[0], divisors[tile]) : divisor[0] + divisors[tile];
  }
  peak ? reduce_block<1>(divisor, scratch, Maximum()) : reduce_block<1>(divisor, scratch, Sum());
  const Quotient<T> quotient(static_cast<T>(divisor_or_one(divisor[0])));
  const auto divide_from = [&]<int V>() {
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
  constexpr int V = VECTOR<T>;
  if (starts_a_vector(map) && cells % V == 0) {
    divide_from.template operator()<V>();
  } else {
    divide_from.template operator()<1>();
  }
}

}  // namespace pal_fast::cuda

// Moments of channels in shared memory: a team of neighbouring threads per channel, in two passes over the tile.
#pragma once

#include "cuda/block.cuh"

namespace pal_fast::cuda {

// Running moments of a channel, accumulated chunk by chunk about a pivot, the mean of the first chunk: pivot, sum of
// a - pivot, of its square, and of its product with hc.
inline constexpr int CHANNEL_MOMENTS = 4;

// Values that a team's warps exchange through shared memory: two in the first pass, three in the second.
inline constexpr int TEAM_SUMS = 5;

// All-reduce of K values over teams of `lanes` neighbouring threads, a power of two. Teams of several warps combine
// through scratch [K * MAX_BLOCK_WARPS], in the order of warps. All threads of the block must call.
template <int K, typename T, typename Operation>
__device__ __forceinline__ void reduce_team(T (&value)[K], int lanes, Pointer<T> scratch, const Operation& operation) {
  for (int step = min(lanes, WARP_SIZE) / 2; step > 0; step /= 2) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      value[k] = operation(k, value[k], __shfl_xor_sync(FULL_WARP_MASK, value[k], step));
    }
  }
  if (lanes <= WARP_SIZE) {
    return;
  }
  const int warp = static_cast<int>(threadIdx.x) / WARP_SIZE, warps = lanes / WARP_SIZE;
  if (threadIdx.x % WARP_SIZE == 0) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      scratch[k * MAX_BLOCK_WARPS + warp] = value[k];
    }
  }
  __syncthreads();
  const int first = warp / warps * warps;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    value[k] = scratch[k * MAX_BLOCK_WARPS + first];
#pragma unroll
    for (int other = 1; other < MAX_BLOCK_WARPS; ++other) {
      if (other < warps) {
        value[k] = operation(k, value[k], scratch[k * MAX_BLOCK_WARPS + first + other]);
      }
    }
  }
}

// One thread's part of the team's passes over a [length] and hc [length], W elements at a time. W > 1 requires both to
// be 16-byte aligned and length a multiple of W.
template <int W>
inline constexpr int TEAM_UNROLL = W == 1 ? 4 : 2;

// Double is not scaled, so that it needs no maximum.
template <typename T>
inline constexpr int FIRST_SUMS = std::is_same_v<T, float> ? 2 : 1;

// Sum of a, maximum of |a|.
template <int W, typename T>
__device__ __forceinline__ void first_pass(Pointer<const T> a, int length, int lane, int lanes,
                                           T (&sums)[FIRST_SUMS<T>]) {
#pragma unroll TEAM_UNROLL < W>
  for (int i = lane * W; i < length; i += lanes * W) {
    T value[W];
    load_shared<W, T>(a + i, value);
#pragma unroll
    for (int e = 0; e < W; ++e) {
      sums[0] += value[e];
      if constexpr (FIRST_SUMS<T> == 2) {
        sums[1] = fmaxf(sums[1], fabsf(value[e]));
      }
    }
  }
}

// Sums of d = (a - mean) / unit, of d^2 and of d * hc. d is one fma, because scaling by a power of two is exact.
template <int W, typename T>
__device__ __forceinline__ void second_pass(Pointer<const T> a, Pointer<const T> hc, int length, int lane, int lanes,
                                            T mean, T inverse_unit, T (&sums)[3]) {
  const T origin = -mean * inverse_unit;
#pragma unroll TEAM_UNROLL < W>
  for (int i = lane * W; i < length; i += lanes * W) {
    T value[W], h[W];
    load_shared<W, T>(a + i, value);
    load_shared<W, T>(hc + i, h);
#pragma unroll
    for (int e = 0; e < W; ++e) {
      const T d = fma(value[e], inverse_unit, origin);
      sums[0] += d;
      sums[1] += d * d;
      sums[2] += d * h[e];
    }
  }
}

// Moments of a chunk of a channel about the chunk's own mean, in units of `unit`, a power of two.
template <typename T>
struct TeamMoments {
  T mean, unit;
  T sums[3];  // of second_pass()
};

// All threads of the block must call; length is 0 for a team without a channel. scratch: [TEAM_SUMS * MAX_BLOCK_WARPS],
// a separate part for each pass, so that a barrier lies between two uses of a part.
template <typename T>
[[nodiscard]] __device__ __forceinline__ TeamMoments<T> team_moments(Pointer<const T> a, Pointer<const T> hc,
                                                                     int length, bool vectors, int lane, int lanes,
                                                                     Pointer<T> scratch) {
  constexpr int V = VECTOR_SIZE<T>;
  T first[FIRST_SUMS<T>] = {};
  if (vectors) {
    first_pass<V, T>(a, length, lane, lanes, first);
  } else {
    first_pass<1, T>(a, length, lane, lanes, first);
  }
  reduce_team(first, lanes, scratch, [](int k, T x, T y) { return k == 0 ? x + y : static_cast<T>(fmax(x, y)); });
  TeamMoments<T> moments{length > 0 ? first[0] / static_cast<T>(length) : T(0), T(1), {}};
  if constexpr (FIRST_SUMS<T> == 2) {
    moments.unit = unit_of(first[1]);
  }
  const T inverse = inverse_of_unit(moments.unit);
  if (vectors) {
    second_pass<V, T>(a, hc, length, lane, lanes, moments.mean, inverse, moments.sums);
  } else {
    second_pass<1, T>(a, hc, length, lane, lanes, moments.mean, inverse, moments.sums);
  }
  reduce_team(moments.sums, lanes, scratch + 2 * MAX_BLOCK_WARPS, [](int, T x, T y) { return x + y; });
  return moments;
}

// Merges a chunk [length] into its channel's running moments. heatmap_total: sum of hc over the chunk.
template <typename T>
__device__ __forceinline__ void add_moments(const TeamMoments<T>& chunk, int length, bool first_chunk,
                                            double heatmap_total, Pointer<double> moments) {
  const double unit = chunk.unit, mean = chunk.mean, remainder = unit * chunk.sums[0];
  const double squares = unit * unit * chunk.sums[1], products = unit * chunk.sums[2];
  if (first_chunk) {
    moments[0] = mean;
    moments[1] = remainder;
    moments[2] = squares;
    moments[3] = products;
  } else {
    const double shift = mean - moments[0];
    moments[1] += remainder + shift * length;
    moments[2] += squares + shift * (2.0 * remainder + shift * length);
    moments[3] += products + shift * heatmap_total;
  }
}

}  // namespace pal_fast::cuda

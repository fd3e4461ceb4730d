// The moments of channels that lie in shared memory: a team of threads a channel, in two passes.
#pragma once

#include "block.cuh"

namespace pal_fast::cuda {

// What the block knows of a channel while chunks of it go by: sums about `about`, the mean in the first chunk.
inline constexpr int CHANNEL_MOMENTS = 4;  // about, sum of a - about, of its square, of its product with hc

// What a team's warps leave for each other: two numbers in the first pass, three in the second.
inline constexpr int TEAM_SUMS = 5;

// K sums over teams of `lanes` neighbouring threads, a power of two; the results are in every thread of the team. Teams
// of several warps combine through scratch [K * MOST_WARPS], in the order of warps, and all of the block must call.
template <int K, typename T, typename Operation>
__device__ __forceinline__ void reduce_team(T (&value)[K], int lanes, Pointer<T> scratch, const Operation& operation) {
  for (int step = min(lanes, WARP_LANES) / 2; step > 0; step /= 2) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      value[k] = operation(k, value[k], __shfl_xor_sync(WHOLE_WARP, value[k], step));
    }
  }
  if (lanes <= WARP_LANES) {
    return;
  }
  const int warp = static_cast<int>(threadIdx.x) / WARP_LANES, warps = lanes / WARP_LANES;
  if (threadIdx.x % WARP_LANES == 0) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      scratch[k * MOST_WARPS + warp] = value[k];
    }
  }
  __syncthreads();
  const int first = warp / warps * warps;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    value[k] = scratch[k * MOST_WARPS + first];
#pragma unroll
    for (int other = 1; other < MOST_WARPS; ++other) {
      if (other < warps) {
        value[k] = operation(k, value[k], scratch[k * MOST_WARPS + first + other]);
      }
    }
  }
}

// What a thread does of a team's two passes over a [length] and hc [length], W elements at a time: W > 1 wants both
// 16-byte aligned, and length a multiple. Vectors leave fewer steps to unroll.
template <int W>
inline constexpr int TEAM_UNROLL = W == 1 ? 4 : 2;

// Double is not scaled, so it needs no largest.
template <typename T>
inline constexpr int FIRST_SUMS = std::is_same_v<T, float> ? 2 : 1;

// Sum of a, largest |a|.
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

// Sums of d = (a - mean) / unit, in one operation because products with a power of two are exact, of d^2 and of d hc.
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

// A chunk of one channel about its own mean, which is exact where all of the channel is there.
template <typename T>
struct TeamMoments {
  T mean, unit;
  T sums[3];  // of second_pass()
};

// All of the block must call; length is 0 for a team without a channel. scratch: [TEAM_SUMS * MOST_WARPS], of which
// each pass has a part, so that a barrier lies between its uses.
template <typename T>
[[nodiscard]] __device__ __forceinline__ TeamMoments<T> team_moments(Pointer<const T> a, Pointer<const T> hc,
                                                                     int length, bool vectors, int lane, int lanes,
                                                                     Pointer<T> scratch) {
  constexpr int V = VECTOR<T>;
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
  reduce_team(moments.sums, lanes, scratch + 2 * MOST_WARPS, [](int, T x, T y) { return x + y; });
  return moments;
}

// Adds a chunk [length] to what is known of its channel. heatmap_total: sum of hc over the chunk.
template <typename T>
__device__ __forceinline__ void add_moments(const TeamMoments<T>& chunk, int length, bool first_chunk,
                                            double heatmap_total, Pointer<double> moments) {
  const double wide = chunk.unit, mean = chunk.mean, remainder = wide * chunk.sums[0];
  const double squares = wide * wide * chunk.sums[1], products = wide * chunk.sums[2];
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

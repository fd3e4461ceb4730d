// A layer's activation f and gradient g, and vectorised loads of the attribution a = |g| f or g f.
#pragma once

#include "cuda/block.cuh"
#include "cuda/storage.h"
#include "problem.h"

namespace pal_fast::cuda {

// Kernel argument. A tensor that the attribution does not use is null and counts as ones, so that one formula covers
// all attributions.
template <typename S>
struct Layer {
  using T = typename ComputeType<S>::type;

  Pointer<const S> activation;  // [B, C, H, W]
  Pointer<const S> gradient;    // [B, C, H, W]
  int channels, count, cells;   // C; n, the first channels, which take part; H * W
  bool absolute;
  bool aligned;  // both tensors are aligned to 16 bytes

  [[nodiscard]] __device__ __forceinline__ int64_t sample_elements() const {
    return static_cast<int64_t>(channels) * cells;
  }
  // |g| or g.
  [[nodiscard]] __device__ __forceinline__ T magnitude(T g) const { return absolute ? fabs(g) : g; }
  [[nodiscard]] __device__ __forceinline__ T f(int64_t i) const { return activation ? widened(activation[i]) : T(1); }
  [[nodiscard]] __device__ __forceinline__ T g(int64_t i) const { return gradient ? widened(gradient[i]) : T(1); }
  [[nodiscard]] __device__ __forceinline__ T attribution(int64_t i) const { return magnitude(g(i)) * f(i); }
  __device__ __forceinline__ void prefetch(int64_t i) const {
    if (activation) {
      prefetch_l2(activation + i);
    }
    if (gradient) {
      prefetch_l2(gradient + i);
    }
  }
};

template <typename S>
[[nodiscard]] Layer<S> layer_of(const LossProblem& problem, const void* activation, const void* gradient) {
  const int64_t size = problem.batch * problem.sample_elements();
  return {global_array<const S>(activation, size), global_array<const S>(gradient, size),
          static_cast<int>(problem.channels),      static_cast<int>(problem.count),
          static_cast<int>(problem.cells()),       problem.absolute,
          aligned(activation) && aligned(gradient)};
}

// a[u] = the attribution minus `pivot` of the vector at index[u], for U vectors, all of whose loads are issued before
// the first is used. If Predicated, vectors that are not valid are not read and give zeros; otherwise all must be
// valid.
template <bool Predicated, int U, typename S, typename T>
__device__ __forceinline__ void load_attribution(const Layer<S>& layer, const int64_t (&index)[U],
                                                 const bool (&valid)[U], T (&a)[U][VECTOR_SIZE<S>], T pivot = 0) {
  Vector<S> f[U], g[U];
#pragma unroll
  for (int u = 0; u < U; ++u) {
    f[u] = g[u] = Vector<S>::broadcast(T(1));
    if (!Predicated || valid[u]) {
      if (layer.activation) {
        f[u] = load_vector<S>(layer.activation + index[u]);
      }
      if (layer.gradient) {
        g[u] = load_vector<S>(layer.gradient + index[u]);
      }
    }
  }
#pragma unroll
  for (int u = 0; u < U; ++u) {
    T factor[VECTOR_SIZE<S>];
    f[u].widen(factor);
    g[u].widen(a[u]);
#pragma unroll
    for (int e = 0; e < VECTOR_SIZE<S>; ++e) {
      const T value = layer.magnitude(a[u][e]) * factor[e] - pivot;
      a[u][e] = !Predicated || valid[u] ? value : T(0);
    }
  }
}

// The pivot of the shifted sums over elements [begin, end), which avoid the cancellation of a small spread about a
// large mean: the attribution of smallest magnitude in the first vector. For values that scatter about zero it is near
// zero, so that subtracting it costs them no digits.
template <typename S>
[[nodiscard]] __device__ __forceinline__ typename ComputeType<S>::type pivot_of(const Layer<S>& layer, int64_t begin,
                                                                                int64_t end) {
  using T = typename ComputeType<S>::type;
  constexpr int V = VECTOR_SIZE<S>;
  const int64_t index[1] = {(begin + V - 1) / V * V};
  const bool valid[1] = {layer.aligned && index[0] + V <= end};
  if (!valid[0]) {
    return layer.attribution(begin);
  }
  T a[1][V];
  load_attribution<false>(layer, index, valid, a);
  T pivot = a[0][0];
#pragma unroll
  for (int e = 1; e < V; ++e) {
    pivot = fabs(a[0][e]) < fabs(pivot) ? a[0][e] : pivot;
  }
  return pivot;
}

// Sum and sum of squares in double, accurate at any magnitude and for any ratio of spread to mean.
//
// Squares of float would underflow and overflow (attributions of 1e-24 and of 1e15 are in range), and double arithmetic
// on every element is slow on most GPUs. So each batch of U * V floats is centred about its own mean and divided by a
// power of two, which is exact; only the batch's sums are widened to double and merged.
struct MomentSums {
  double sum = 0;
  double sum_of_squares = 0;

  __device__ __forceinline__ void add(double value) {
    sum += value;
    sum_of_squares += value * value;
  }

  // Values and predicates of load_attribution.
  template <bool Predicated, int U, int V>
  __device__ __forceinline__ void add(const float (&a)[U][V], const bool (&valid)[U]) {
    float total = 0;
    int count = 0;
#pragma unroll
    for (int u = 0; u < U; ++u) {
      count += !Predicated || valid[u] ? V : 0;
#pragma unroll
      for (int e = 0; e < V; ++e) {
        total += a[u][e];  // zero where invalid
      }
    }
    const float mean = !Predicated ? total * (1.0f / (U * V)) : count > 0 ? total / static_cast<float>(count) : 0.0f;
    float largest = 0;
#pragma unroll
    for (int u = 0; u < U; ++u) {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        largest = !Predicated || valid[u] ? fmaxf(largest, fabsf(a[u][e] - mean)) : largest;
      }
    }
    const float unit = unit_of(largest), inverse = inverse_of_unit(unit);
    float rest = 0, squared = 0;
#pragma unroll
    for (int u = 0; u < U; ++u) {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const float d = !Predicated || valid[u] ? (a[u][e] - mean) * inverse : 0.0f;
        rest += d;
        squared += d * d;
      }
    }
    const double wide_unit = unit, wide_mean = mean, remainder = wide_unit * rest;
    sum += wide_mean * count + remainder;
    sum_of_squares += wide_unit * wide_unit * squared + wide_mean * (2.0 * remainder + wide_mean * count);
  }

  template <bool Predicated, int U, int V>
  __device__ __forceinline__ void add(const double (&a)[U][V], const bool (&valid)[U]) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        if (!Predicated || valid[u]) {
          add(a[u][e]);
        }
      }
    }
  }
};

}  // namespace pal_fast::cuda

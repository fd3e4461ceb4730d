// A layer's activation and gradient, and the attribution that they make.
#pragma once

#include "../problem.h"
#include "block.cuh"
#include "storage.h"

namespace pal_fast::cuda {

// As kernels take it. A tensor that the attribution does not use is null and counts as ones, which makes one formula of
// all attributions: a = |g| f, or g f.
template <typename S>
struct Layer {
  using T = typename Computing<S>::type;

  Pointer<const S> activation;  // [B, C, H, W]
  Pointer<const S> gradient;    // [B, C, H, W]
  int channels, count, cells;   // C, n, H * W
  bool absolute;
  bool aligned;  // both tensors start at a multiple of 16 bytes

  [[nodiscard]] __device__ __forceinline__ int64_t sample_elements() const {
    return static_cast<int64_t>(channels) * cells;
  }
  // |g| or g.
  [[nodiscard]] __device__ __forceinline__ T magnitude(T g) const { return absolute ? fabs(g) : g; }
  [[nodiscard]] __device__ __forceinline__ T f(int64_t at) const { return activation ? widened(activation[at]) : T(1); }
  [[nodiscard]] __device__ __forceinline__ T g(int64_t at) const { return gradient ? widened(gradient[at]) : T(1); }
  [[nodiscard]] __device__ __forceinline__ T attribution(int64_t at) const { return magnitude(g(at)) * f(at); }
  __device__ __forceinline__ void prefetch_at(int64_t at) const {
    if (activation) {
      prefetch(activation + at);
    }
    if (gradient) {
      prefetch(gradient + at);
    }
  }
};

template <typename S>
[[nodiscard]] Layer<S> layer_of(const LossProblem& problem, const void* activation, const void* gradient) {
  const int64_t size = problem.batch * problem.sample_elements();
  return {elements<const S>(activation, size),     elements<const S>(gradient, size),
          static_cast<int>(problem.channels),      static_cast<int>(problem.count),
          static_cast<int>(problem.cells()),       problem.absolute,
          aligned(activation) && aligned(gradient)};
}

// The attribution less `pivot` at U vectors, whose loads are all in flight before the first is used. If `Guarded`,
// those that are not `there` are not read and give zeros; otherwise all are there.
template <bool Guarded, int U, typename S, typename T>
__device__ __forceinline__ void load_attribution(const Layer<S>& layer, const int64_t (&at)[U], const bool (&there)[U],
                                                 T (&a)[U][VECTOR<S>], T pivot = 0) {
  Vector<S> f[U], g[U];
#pragma unroll
  for (int u = 0; u < U; ++u) {
    f[u] = g[u] = Vector<S>::filled(T(1));
    if (!Guarded || there[u]) {
      if (layer.activation) {
        f[u] = load_vector<S>(layer.activation + at[u]);
      }
      if (layer.gradient) {
        g[u] = load_vector<S>(layer.gradient + at[u]);
      }
    }
  }
#pragma unroll
  for (int u = 0; u < U; ++u) {
    T factor[VECTOR<S>];
    f[u].widen(factor);
    g[u].widen(a[u]);
#pragma unroll
    for (int e = 0; e < VECTOR<S>; ++e) {
      const T value = layer.magnitude(a[u][e]) * factor[e] - pivot;
      a[u][e] = !Guarded || there[u] ? value : T(0);
    }
  }
}

// A number that the attribution of a run of elements [begin, end) is summed about, so that a small spread over a large
// mean is not lost in the sum: the smallest in magnitude of the first vector's. Where values scatter about zero it is
// near zero, and no value loses digits to it.
template <typename S>
[[nodiscard]] __device__ __forceinline__ typename Computing<S>::type pivot_of(const Layer<S>& layer, int64_t begin,
                                                                              int64_t end) {
  using T = typename Computing<S>::type;
  constexpr int V = VECTOR<S>;
  const int64_t at[1] = {(begin + V - 1) / V * V};
  const bool there[1] = {layer.aligned && at[0] + V <= end};
  if (!there[0]) {
    return layer.attribution(begin);
  }
  T a[1][V];
  load_attribution<false>(layer, at, there, a);
  T pivot = a[0][0];
#pragma unroll
  for (int e = 1; e < V; ++e) {
    pivot = fabs(a[0][e]) < fabs(pivot) ? a[0][e] : pivot;
  }
  return pivot;
}

// Sums of numbers and of their squares in double, whatever their magnitude and however close they lie together.
//
// Squares of float would underflow and overflow (attributions of 1e-24 and of 1e15 are in range), and arithmetic in
// double on every element is slow on most GPUs. So up to U * V numbers at a time are centred about their own mean and
// divided by a power of two, which is exact; only what they add up to is widened.
struct Squares {
  double sum = 0;
  double squares = 0;

  __device__ __forceinline__ void add(double value) {
    sum += value;
    squares += value * value;
  }

  // As load_attribution gives them.
  template <bool Guarded, int U, int V>
  __device__ __forceinline__ void add(const float (&a)[U][V], const bool (&there)[U]) {
    float total = 0;
    int count = 0;
#pragma unroll
    for (int u = 0; u < U; ++u) {
      count += !Guarded || there[u] ? V : 0;
#pragma unroll
      for (int e = 0; e < V; ++e) {
        total += a[u][e];  // zero where not there
      }
    }
    const float mean = !Guarded ? total * (1.0f / (U * V)) : count > 0 ? total / static_cast<float>(count) : 0.0f;
    float largest = 0;
#pragma unroll
    for (int u = 0; u < U; ++u) {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        largest = !Guarded || there[u] ? fmaxf(largest, fabsf(a[u][e] - mean)) : largest;
      }
    }
    const float unit = unit_of(largest), inverse = inverse_of_unit(unit);
    float rest = 0, squared = 0;
#pragma unroll
    for (int u = 0; u < U; ++u) {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const float d = !Guarded || there[u] ? (a[u][e] - mean) * inverse : 0.0f;
        rest += d;
        squared += d * d;
      }
    }
    const double wide = unit, about = mean, remainder = wide * rest;
    sum += about * count + remainder;
    squares += wide * wide * squared + about * (2.0 * remainder + about * count);
  }

  template <bool Guarded, int U, int V>
  __device__ __forceinline__ void add(const double (&a)[U][V], const bool (&there)[U]) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        if (!Guarded || there[u]) {
          add(a[u][e]);
        }
      }
    }
  }
};

}  // namespace pal_fast::cuda

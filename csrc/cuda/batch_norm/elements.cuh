// A thread's channel parameters, and the quantities that batch normalisation's kernels compute from loaded elements.
#pragma once

#include "cuda/batch_norm/slice.cuh"

namespace pal_fast::cuda {

template <typename T, int W>
struct Channels {
  T mean[W], r[W], weight[W], bias[W];

  template <typename S, bool Vectorised, Tiling F>
  __device__ __forceinline__ explicit Channels(const BlockSlice<S, Vectorised, F>& slice) {
    const BatchNormKernelParams<S>& params = slice.params;
    const Pointer<const T> statistics = params.statistics;
    load_channels<S, Vectorised, F, T>(slice, statistics, mean);
    load_channels<S, Vectorised, F, T>(slice, statistics + params.channels, r);
#pragma unroll
    for (int w = 0; w < W; ++w) {
      weight[w] = T(1);
      bias[w] = T(0);
    }
    if (params.weight) {
      load_channels<S, Vectorised, F, T>(slice, params.weight, weight);
    }
    if (params.bias) {
      load_channels<S, Vectorised, F, T>(slice, params.bias, bias);
    }
  }
};

// Vectors of the first N of the tensors input, grad and grad_grad, still packed.
template <typename S, int V, int N>
struct Loaded {
  Vector<S, V> tensor[N];
};

template <int N, int V, typename S>
[[nodiscard]] __device__ __forceinline__ Loaded<S, V, N> load(const BatchNormKernelParams<S>& params, int64_t offset) {
  Loaded<S, V, N> loaded;
  loaded.tensor[0] = load_vector<S, V>(params.input + offset);
  if constexpr (N > 1) {
    loaded.tensor[1] = load_vector<S, V>(params.grad + offset);
  }
  if constexpr (N > 2) {
    loaded.tensor[2] = Vector<S, V>::broadcast(0);
    if (params.grad_grad) {
      loaded.tensor[2] = load_vector<S, V>(params.grad_grad + offset);
    }
  }
  return loaded;
}

// V elements: xc = x - mean, y = the output before the ReLU, grad = G, masked by the ReLU, and grad_grad = v.
template <typename T, int V>
struct Element {
  T xc[V], y[V], grad[V], grad_grad[V];
};

template <typename S, int V, int N, typename T, int W>
[[nodiscard]] __device__ __forceinline__ Element<T, V> elements_of(const Loaded<S, V, N>& loaded,
                                                                   const Channels<T, W>& channels, bool relu) {
  Element<T, V> e = {};
  loaded.tensor[0].widen(e.xc);
  if constexpr (N > 1) {
    loaded.tensor[1].widen(e.grad);
  }
  if constexpr (N > 2) {
    loaded.tensor[2].widen(e.grad_grad);
  }
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const int w = W == 1 ? 0 : i;
    e.xc[i] -= channels.mean[w];
    e.y[i] = channels.weight[w] * channels.r[w] * e.xc[i] + channels.bias[w];
    if (N > 1 && relu && e.y[i] <= T(0)) {
      e.grad[i] = 0;
    }
  }
  return e;
}

}  // namespace pal_fast::cuda

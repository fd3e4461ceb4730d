// Batch normalisation and its derivatives. A derivative is a reduction and an elementwise kernel. Where a tile's
// channels are split among blocks, the last of these adds up what they leave, in a fixed order, for the elementwise
// kernel; where one block takes them whole, the elementwise kernel reduces, too.
#pragma once

#include "batch_norm_elements.cuh"
#include "batch_norm_sums.cuh"

namespace pal_fast::cuda {

// 1. y = weight * (x - mean) * r + bias, ReLU.
template <typename S, bool Wide, Form F>
__global__ void __launch_bounds__(MOST_THREADS, resident_batch_norm_blocks(false, sizeof(S)))
    forward_kernel(const TypedPass<S> pass) {
  using T = typename Computing<S>::type;
  using Block = Share<S, Wide, F>;
  constexpr int V = Block::V;
  const Block share(pass, true);
  const Channels<T, Block::W> channels(share);
  const auto from = [&](int64_t at) { return load<1, V>(pass, at); };
  share.template each<in_flight<S, Wide, 1>()>(from, [&](int64_t at, const Loaded<S, V, 1>& loaded) {
    Element<T, V> e = elements_of(loaded, channels, pass.relu);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      e.y[i] = pass.relu && e.y[i] <= T(0) ? T(0) : e.y[i];
    }
    store_vector<S>(pass.output + at, e.y);
  });
}

enum class Derivative { first, second };

// first: sum G, sum G xc; second: sum v, sum v xc, sum v G.
template <Derivative D>
inline constexpr int SUMS = D == Derivative::first ? 2 : 3;
// What it reads.
template <Derivative D>
inline constexpr int TENSORS = D == Derivative::first ? 2 : 3;

// The sums of a derivative over the block's share.
template <Derivative D, typename S, bool Wide, Form F, typename T, int W>
__device__ __forceinline__ void sums_over_share(const Share<S, Wide, F>& share, const Channels<T, W>& channels,
                                                const BatchNormShared<S>& shared, T (&sum)[SUMS<D>][W]) {
  constexpr int V = Share<S, Wide, F>::V, N = TENSORS<D>;
  const auto from = [&](int64_t at) { return load<N, V>(share.pass, at); };
  share.template each<in_flight<S, Wide, N>()>(from, [&](int64_t, const Loaded<S, V, N>& loaded) {
    const Element<T, V> e = elements_of(loaded, channels, share.pass.relu);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const int w = W == 1 ? 0 : i;
      const T factor = D == Derivative::first ? e.grad[i] : e.grad_grad[i];
      sum[0][w] += factor;
      sum[1][w] += factor * e.xc[i];
      if constexpr (D == Derivative::second) {
        sum[2][w] += factor * e.grad[i];
      }
    }
  });
  sum_elements<SUMS<D>>(sum, share, shared);
}

// 2. The sums where a tile is split.
template <Derivative D, typename S, bool Wide, Form F>
__global__ void __launch_bounds__(MOST_THREADS, resident_batch_norm_blocks(D == Derivative::second, sizeof(S)))
    sums_kernel(const TypedPass<S> pass) {
  using T = typename Computing<S>::type;
  constexpr int K = SUMS<D>, W = Share<S, Wide, F>::W;
  const Share<S, Wide, F> share(pass);
  const BatchNormShared<S> shared;
  {
    const Channels<T, W> channels(share);
    T sum[K][W] = {};
    sums_over_share<D>(share, channels, shared, sum);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      store_channels(share, share.split, k, sum[k]);
    }
  }
  if (!last_block(pass.tickets + share.tile, static_cast<unsigned>(pass.splits), shared.flag)) {
    return;
  }
  double total[K][W] = {};
  sum_splits<K>(total, share, shared, [&](int split, double (&to)[K][W]) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      T of_split[W];
      load_channels<S, Wide, F, T>(share, pass.partial_of(split, k), of_split);
#pragma unroll
      for (int w = 0; w < W; ++w) {
        to[k][w] += of_split[w];
      }
    }
  });
#pragma unroll
  for (int k = 0; k < K; ++k) {
    T rounded[W];
#pragma unroll
    for (int w = 0; w < W; ++w) {
      rounded[w] = static_cast<T>(total[k][w]);
    }
    store_channels(share, pass.splits, k, rounded);
  }
}

// 3. dx, or d_grad and d_input; and, by the first block of each channel, what is of the channel. The sums are in
// pass.partial where a tile is split; else the block sums itself, or, with reduces = false, nothing needs them.
template <Derivative D, typename S, bool Wide, Form F>
__global__ void __launch_bounds__(MOST_THREADS, resident_batch_norm_blocks(D == Derivative::second, sizeof(S)))
    derivative_kernel(const TypedPass<S> pass, const bool reduces) {
  using T = typename Computing<S>::type;
  using Block = Share<S, Wide, F>;
  constexpr int K = SUMS<D>, V = Block::V, W = Block::W, N = TENSORS<D>;
  const Block share(pass, true);
  const Channels<T, W> channels(share);
  T sum[K][W] = {};
  if (reduces && pass.splits > 1) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      load_channels<S, Wide, F, T>(share, pass.partial_of(pass.splits, k), sum[k]);
    }
  } else if (reduces) {
    const BatchNormShared<S> shared;
    sums_over_share<D>(share, channels, shared, sum);
  }

  const T inverse_count = pass.inverse_count;
  BatchNormAffine<T> of_first[W], of_second[W];
  T of_backward[2][W] = {}, of_grad_sums[2][W] = {};  // s0, s1 and u0, u1
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    if (D == Derivative::second && pass.sums) {
      load_channels<S, Wide, F, T>(share, pass.sums + k * pass.channels, of_backward[k]);
    }
    if (D == Derivative::second && pass.grad_sums) {
      load_channels<S, Wide, F, T>(share, pass.grad_sums + k * pass.channels, of_grad_sums[k]);
    }
  }
#pragma unroll
  for (int w = 0; w < W; ++w) {
    const bool writes = pass.channel_output && share.split == 0 && share.writes(w);
    const int64_t c = share.channel(w);
    const T r = channels.r[w], weight = channels.weight[w];
    if constexpr (D == Derivative::first) {
      of_first[w] = batch_norm_backward_of<T>(pass.training, inverse_count, weight, r, sum[0][w], sum[1][w] * r);
      if (writes) {
        pass.channel_output[c] = sum[0][w];
        pass.channel_output[pass.channels + c] = sum[1][w] * r;
      }
    } else {
      const BatchNormSecond<T> second =
          batch_norm_second_of<T>(pass.training, inverse_count, weight, r, of_backward[0][w], of_backward[1][w],
                                  of_grad_sums[0][w], of_grad_sums[1][w], sum[0][w], sum[1][w] * r, sum[2][w]);
      of_first[w] = second.grad_grad;
      of_second[w] = second.grad_input;
      if (writes) {
        pass.channel_output[c] = second.grad_weight;
      }
    }
  }
  if (!pass.output) {
    return;
  }

  const auto from = [&](int64_t at) { return load<N, V>(pass, at); };
  share.template each<in_flight<S, Wide, N>()>(from, [&](int64_t at, const Loaded<S, V, N>& loaded) {
    const Element<T, V> e = elements_of(loaded, channels, pass.relu);
    T first[V], second[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const int w = W == 1 ? 0 : i;
      const BatchNormAffine<T>& a = of_first[w];
      if constexpr (D == Derivative::first) {
        first[i] = a.of_grad * e.grad[i] + a.of_input * e.xc[i] + a.constant;
      } else {
        const BatchNormAffine<T>& b = of_second[w];
        first[i] = a.of_grad_grad * e.grad_grad[i] + a.of_input * e.xc[i] + a.constant;
        first[i] = pass.relu && e.y[i] <= T(0) ? T(0) : first[i];
        second[i] = b.of_grad * e.grad[i] + b.of_grad_grad * e.grad_grad[i] + b.of_input * e.xc[i] + b.constant;
      }
    }
    store_vector<S>(pass.output + at, first);
    if constexpr (D == Derivative::second) {
      if (pass.second_output) {
        store_vector<S>(pass.second_output + at, second);
      }
    }
  });
}

}  // namespace pal_fast::cuda

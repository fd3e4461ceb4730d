// Batch normalisation's kernels. Each operator is at most a reduction (block sums into `partial`) and an elementwise
// kernel whose blocks first add up their channels' partial sums, in a fixed order: nothing is atomic, nothing waits.
// A channel that one block can take needs no partial sums: the elementwise kernel reduces, too.
#pragma once

#include "batch_norm_share.cuh"

namespace pal_fast::cuda {

enum class Derivative { first, second };

// first: sum G, sum G xc; second: sum v, sum v xc, sum v G.
template <Derivative D>
inline constexpr int sums_of = D == Derivative::first ? 2 : 3;

// 1. The statistics of a batch. Two passes over the share, the second one corrected for the rounding of the mean.
template <int K, int W, bool Rows, typename T>
__device__ __forceinline__ void sum_over_block(T (&value)[K][W]) {
  if constexpr (Rows) {
    column_sums<K, W>(value);
  } else {
    T flat[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      flat[k] = value[k][0];
    }
    block_sums<K>(flat);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      value[k][0] = flat[k];
    }
  }
}

template <typename S, typename T>
__device__ void write_statistics(const TypedPass<S>& pass, int64_t c, T mean, T squares, int64_t count) {
  const double variance = static_cast<double>(squares) / static_cast<double>(count);
  pass.statistics[c] = mean;
  pass.statistics[pass.channels + c] = static_cast<T>(1.0 / sqrt(variance + pass.eps));
  if (pass.running_mean) {
    pass.running_mean[c] += static_cast<T>(pass.momentum * (static_cast<double>(mean) - pass.running_mean[c]));
  }
  if (pass.running_variance) {
    const double unbiased = static_cast<double>(squares) / static_cast<double>(count - 1);
    pass.running_variance[c] += static_cast<T>(pass.momentum * (unbiased - pass.running_variance[c]));
  }
}

template <typename S, int V, bool Rows>
__global__ void __launch_bounds__(BLOCK, 1) statistics_kernel(const TypedPass<S> pass) {
  using T = typename Computing<S>::type;
  constexpr int W = Share<S, V, Rows>::W;
  const Share<S, V, Rows> share(pass);
  const T size = static_cast<T>(share.size());
  const T inverse_size = size > 0 ? T(1) / size : T(0);

  T mean[1][W] = {};
  share.each([&](int64_t at) {
    T x[V];
    load<S, V>(pass.input + at, x);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      mean[0][W == 1 ? 0 : i] += x[i];
    }
  });
  sum_over_block<1, W, Rows>(mean);
#pragma unroll
  for (int w = 0; w < W; ++w) {
    mean[0][w] *= inverse_size;
  }

  T moment[2][W] = {};  // sum (x - mean), sum (x - mean)^2
  share.each([&](int64_t at) {
    T x[V];
    load<S, V>(pass.input + at, x);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const int w = W == 1 ? 0 : i;
      const T xc = x[i] - mean[0][w];
      moment[0][w] += xc;
      moment[1][w] += xc * xc;
    }
  });
  sum_over_block<2, W, Rows>(moment);

  const bool writes = share.active() && threadIdx.y == 0 && (Rows || threadIdx.x == 0);
  if (!writes) {
    return;
  }
  for (int w = 0; w < W; ++w) {
    const int64_t c = share.channel + w;
    const T exact = mean[0][w] + moment[0][w] * inverse_size;
    const T squares = moment[1][w] - moment[0][w] * moment[0][w] * inverse_size;
    if (gridDim.y == 1) {
      write_statistics(pass, c, exact, squares, pass.count());
    } else {
      pass.partial_of(blockIdx.y, 0)[c] = exact;
      pass.partial_of(blockIdx.y, 1)[c] = squares;
      pass.partial_of(blockIdx.y, 2)[c] = size;
    }
  }
}

// Combines the parts' means and squares (Chan et al.), one thread a channel; or takes the running statistics.
template <typename S>
__global__ void __launch_bounds__(BLOCK, 1) final_statistics_kernel(const TypedPass<S> pass, int64_t splits) {
  using T = typename Computing<S>::type;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * BLOCK + threadIdx.x;
  if (c >= pass.channels) {
    return;
  }
  if (!pass.training) {
    pass.statistics[c] = pass.running_mean[c];
    pass.statistics[pass.channels + c] =
        static_cast<T>(1.0 / sqrt(static_cast<double>(pass.running_variance[c]) + pass.eps));
    return;
  }
  double mean = 0, squares = 0, count = 0;
  for (int64_t split = 0; split < splits; ++split) {
    const double more = pass.partial_of(split, 2)[c];
    if (more > 0) {
      const double delta = pass.partial_of(split, 0)[c] - mean;
      const double share = more / (count + more);
      squares += pass.partial_of(split, 1)[c] + delta * delta * count * share;
      mean += delta * share;
      count += more;
    }
  }
  write_statistics(pass, c, static_cast<T>(mean), static_cast<T>(squares), pass.count());
}

// 2. y = weight * (x - mean) * r + bias, ReLU.
template <typename S, int V, bool Rows, bool Relu>
__global__ void __launch_bounds__(BLOCK, 1) forward_kernel(const TypedPass<S> pass) {
  using T = typename Computing<S>::type;
  const Share<S, V, Rows> share(pass);
  const Channels<T, Share<S, V, Rows>::W> channels(pass, share.channel);
  share.each([&](int64_t at) {
    Element<T, V> e = read<V, Relu, false, false>(pass, channels, at);
    if constexpr (Relu) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        e.y[i] = e.y[i] <= T(0) ? T(0) : e.y[i];
      }
    }
    store<S, V>(pass.output + at, e.y);
  });
}

// 3. The sums of a derivative over the block's share.
template <Derivative D, typename S, int V, bool Rows, bool Relu, typename T, int W>
__device__ __forceinline__ void sums_over_share(const TypedPass<S>& pass, const Share<S, V, Rows>& share,
                                                const Channels<T, W>& channels, T (&sum)[sums_of<D>][W]) {
  constexpr int K = sums_of<D>;
  share.each([&](int64_t at) {
    const Element<T, V> e = read<V, Relu, true, D == Derivative::second>(pass, channels, at);
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
  sum_over_block<K, W, Rows>(sum);
}

template <Derivative D, typename S, int V, bool Rows, bool Relu>
__global__ void __launch_bounds__(BLOCK, 1) sums_kernel(const TypedPass<S> pass) {
  using T = typename Computing<S>::type;
  constexpr int K = sums_of<D>, W = Share<S, V, Rows>::W;
  const Share<S, V, Rows> share(pass);
  const Channels<T, W> channels(pass, share.channel);
  T sum[K][W] = {};
  sums_over_share<D, S, V, Rows, Relu>(pass, share, channels, sum);
  if (share.active() && threadIdx.y == 0 && (Rows || threadIdx.x == 0)) {
    for (int k = 0; k < K; ++k) {
      for (int w = 0; w < W; ++w) {
        pass.partial_of(blockIdx.y, k)[share.channel + w] = sum[k][w];
      }
    }
  }
}

// The parts' sums, added up by every block that needs them.
template <int K, typename S, int V, bool Rows, typename T, int W>
__device__ __forceinline__ void sums_of_parts(const TypedPass<S>& pass, const Share<S, V, Rows>& share, int64_t splits,
                                              T (&sum)[K][W]) {
  const int64_t first = Rows ? threadIdx.y : threadIdx.y * blockDim.x + threadIdx.x;
  const int64_t step = Rows ? blockDim.y : BLOCK;
  if (share.active()) {
    for (int64_t split = first; split < splits; split += step) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
#pragma unroll
        for (int w = 0; w < W; ++w) {
          sum[k][w] += pass.partial_of(split, k)[share.channel + w];
        }
      }
    }
  }
  sum_over_block<K, W, Rows>(sum);
}

// 4. dx, or d_grad and d_input; and what the first block of each channel writes of the channel. `splits` parts of the
// sums lie in pass.partial; 0: the block takes whole channels and sums them itself, or, with reduces = false, nothing
// needs the sums.
template <Derivative D, typename S, int V, bool Rows, bool Relu>
__global__ void __launch_bounds__(BLOCK, 1) derivative_kernel(const TypedPass<S> pass, int64_t splits, bool reduces) {
  using T = typename Computing<S>::type;
  constexpr int K = sums_of<D>, W = Share<S, V, Rows>::W;
  const Share<S, V, Rows> share(pass);
  const Channels<T, W> channels(pass, share.channel);
  T sum[K][W] = {};
  if (splits > 0) {
    sums_of_parts<K>(pass, share, splits, sum);
  } else if (reduces) {
    sums_over_share<D, S, V, Rows, Relu>(pass, share, channels, sum);
  }

  const T inverse_count = pass.inverse_count;
  const bool writes_channel =
      blockIdx.y == 0 && share.active() && threadIdx.y == 0 && (Rows || threadIdx.x == 0) && pass.channel_output;
  BatchNormAffine<T> of_first[W], of_second[W];
#pragma unroll
  for (int w = 0; w < W; ++w) {
    const int64_t c = share.active() ? share.channel + w : 0;
    const T r = channels.r[w], weight = channels.weight[w];
    if constexpr (D == Derivative::first) {
      of_first[w] = batch_norm_backward_of<T>(pass.training, inverse_count, weight, r, sum[0][w], sum[1][w] * r);
      if (writes_channel) {
        pass.channel_output[c] = sum[0][w];
        pass.channel_output[pass.channels + c] = sum[1][w] * r;
      }
    } else {
      const BatchNormSecond<T> second = batch_norm_second_of<T>(
          pass.training, inverse_count, weight, r, pass.sums ? pass.sums[c] : T(0),
          pass.sums ? pass.sums[pass.channels + c] : T(0), pass.grad_sums ? pass.grad_sums[c] : T(0),
          pass.grad_sums ? pass.grad_sums[pass.channels + c] : T(0), sum[0][w], sum[1][w] * r, sum[2][w]);
      of_first[w] = second.grad_grad;
      of_second[w] = second.grad_input;
      if (writes_channel) {
        pass.channel_output[c] = second.grad_weight;
      }
    }
  }
  if (!pass.output) {
    return;
  }

  share.each([&](int64_t at) {
    const Element<T, V> e = read<V, Relu, true, D == Derivative::second>(pass, channels, at);
    T first[V], second[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const int w = W == 1 ? 0 : i;
      const BatchNormAffine<T>& a = of_first[w];
      first[i] = a.of_grad * e.grad[i] + a.of_grad_grad * e.grad_grad[i] + a.of_input * e.xc[i] + a.constant;
      if constexpr (D == Derivative::second) {
        const BatchNormAffine<T>& b = of_second[w];
        second[i] = b.of_grad * e.grad[i] + b.of_grad_grad * e.grad_grad[i] + b.of_input * e.xc[i] + b.constant;
        if (Relu && e.y[i] <= T(0)) {
          first[i] = 0;
        }
      }
    }
    store<S, V>(pass.output + at, first);
    if constexpr (D == Derivative::second) {
      if (pass.second_output) {
        store<S, V>(pass.second_output + at, second);
      }
    }
  });
}

}  // namespace pal_fast::cuda

// The statistics of a batch, in one launch that reads the input once:
//   1. a block takes the mean of the first elements of its share, a pivot;
//   2. it sums the share about the pivot. As the pivot is the mean of a fraction f of the elements, it lies within
//      sqrt((1 - f) / f) standard deviations of their mean: what is subtracted in the end is at most 1/f times the
//      rest;
//   3. the last block of a tile combines the shares, in double.
#pragma once

#include "batch_norm_sums.cuh"

namespace pal_fast::cuda {

template <typename S, typename N>
__device__ __forceinline__ void write_statistics(const TypedPass<S>& pass, int64_t c, N mean, N squares) {
  using T = typename Computing<S>::type;
  const double count = static_cast<double>(pass.count()), variance = squares / count;
  pass.statistics[c] = static_cast<T>(mean);
  pass.statistics[pass.channels + c] = static_cast<T>(1.0 / sqrt(variance + pass.eps));
  if (pass.running_mean) {
    pass.running_mean[c] += static_cast<T>(pass.momentum * (static_cast<double>(mean) - pass.running_mean[c]));
  }
  if (pass.running_variance) {
    const double unbiased = squares / (count - 1.0);
    pass.running_variance[c] += static_cast<T>(pass.momentum * (unbiased - pass.running_variance[c]));
  }
}

// Vectors of each thread that make the pivot. They are read twice, the second time from L2.
inline constexpr int PIVOT_VECTORS = 4;

template <typename S, bool Wide, Form F>
__global__ void __launch_bounds__(MOST_THREADS, resident_batch_norm_blocks(false, sizeof(S)))
    statistics_kernel(const TypedPass<S> pass) {
  using T = typename Computing<S>::type;
  using Block = Share<S, Wide, F>;
  constexpr int V = Block::V, W = Block::W, U = in_flight<S, Wide, 1>();
  const Block share(pass);
  const BatchNormShared<S> shared;
  const auto load_input = [&](int64_t at) { return load_vector<S, V>(pass.input + at); };

  // 1. The pivot.
  T pivot[2][W] = {};  // sum, count
  typename Block::Walk walk = share.begin();
  share.template batch<PIVOT_VECTORS>(walk, load_input, [&](int64_t, const Vector<S, V>& loaded) {
    T x[V];
    loaded.widen(x);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const int w = W == 1 ? 0 : i;
      pivot[0][w] += x[i];
      pivot[1][w] += T(1);
    }
  });
  sum_elements<2>(pivot, share, shared);
#pragma unroll
  for (int w = 0; w < W; ++w) {
    pivot[0][w] = pivot[1][w] > T(0) ? pivot[0][w] / pivot[1][w] : T(0);
  }

  // 2. The share.
  T moment[2][W] = {};  // sum (x - pivot), sum (x - pivot)^2
  share.template each<U>(load_input, [&](int64_t, const Vector<S, V>& loaded) {
    T x[V];
    loaded.widen(x);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const int w = W == 1 ? 0 : i;
      const T d = x[i] - pivot[0][w];
      moment[0][w] += d;
      moment[1][w] += d * d;
    }
  });
  sum_elements<2>(moment, share, shared);
  const T size = static_cast<T>(share.size());
  T found[3][W];  // mean, sum of squares about it, number of elements
#pragma unroll
  for (int w = 0; w < W; ++w) {
    const T beyond = size > T(0) ? moment[0][w] / size : T(0);
    found[0][w] = pivot[0][w] + beyond;
    found[1][w] = moment[1][w] - moment[0][w] * beyond;
    found[2][w] = size;
  }
  if (pass.splits == 1) {
#pragma unroll
    for (int w = 0; w < W; ++w) {
      if (share.writes(w)) {
        write_statistics(pass, share.channel(w), found[0][w], found[1][w]);
      }
    }
    return;
  }

  // 3. The last block of the tile goes on.
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    store_channels(share, share.split, k, found[k]);
  }
  if (!last_block(pass.tickets + share.tile, static_cast<unsigned>(pass.splits), shared.flag)) {
    return;
  }
  double mean[1][W] = {}, squares[1][W] = {};
  const double inverse_count = 1.0 / static_cast<double>(pass.count());
  sum_splits<1>(mean, share, shared, [&](int split, double (&sum)[1][W]) {
    T of_split[2][W];
    load_channels<S, Wide, F, T>(share, pass.partial_of(split, 0), of_split[0]);
    load_channels<S, Wide, F, T>(share, pass.partial_of(split, 2), of_split[1]);
#pragma unroll
    for (int w = 0; w < W; ++w) {
      sum[0][w] += static_cast<double>(of_split[0][w]) * of_split[1][w];
    }
  });
#pragma unroll
  for (int w = 0; w < W; ++w) {
    mean[0][w] *= inverse_count;
  }
  sum_splits<1>(squares, share, shared, [&](int split, double (&sum)[1][W]) {
    T of_split[3][W];
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      load_channels<S, Wide, F, T>(share, pass.partial_of(split, k), of_split[k]);
    }
#pragma unroll
    for (int w = 0; w < W; ++w) {
      const double delta = of_split[0][w] - mean[0][w];
      sum[0][w] += of_split[1][w] + delta * delta * of_split[2][w];
    }
  });
#pragma unroll
  for (int w = 0; w < W; ++w) {
    if (share.writes(w)) {
      write_statistics(pass, share.channel(w), mean[0][w], squares[0][w]);
    }
  }
}

// Outside training the running statistics serve.
template <typename S>
__global__ void __launch_bounds__(MOST_THREADS, 1) running_statistics_kernel(const TypedPass<S> pass) {
  using T = typename Computing<S>::type;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c < pass.channels) {
    pass.statistics[c] = pass.running_mean[c];
    pass.statistics[pass.channels + c] =
        static_cast<T>(1.0 / sqrt(static_cast<double>(pass.running_variance[c]) + pass.eps));
  }
}

}  // namespace pal_fast::cuda

// The statistics of a batch, in one launch that reads the input once, by shifted sums:
//   1. a block computes a pivot per channel, the mean of the first elements of its slice;
//   2. it sums x - pivot and (x - pivot)^2 over the slice. As the pivot is the mean of a fraction f of the elements, it
//      lies within sqrt((1 - f) / f) standard deviations of their mean: the term that the variance subtracts in the end
//      is at most 1/f times the result;
//   3. the last block of a tile merges the splits' means and sums of squares, in double.
#pragma once

#include "cuda/batch_norm/reductions.cuh"

namespace pal_fast::cuda {

template <typename S, typename N>
__device__ __forceinline__ void write_statistics(const BatchNormKernelParams<S>& params, int64_t c, N mean, N squares) {
  using T = typename ComputeType<S>::type;
  const double count = static_cast<double>(params.count()), variance = squares / count;
  params.statistics[c] = static_cast<T>(mean);
  params.statistics[params.channels + c] = static_cast<T>(1.0 / sqrt(variance + params.eps));
  if (params.running_mean) {
    params.running_mean[c] += static_cast<T>(params.momentum * (static_cast<double>(mean) - params.running_mean[c]));
  }
  if (params.running_variance) {
    const double unbiased = squares / (count - 1.0);
    params.running_variance[c] += static_cast<T>(params.momentum * (unbiased - params.running_variance[c]));
  }
}

// Vectors of each thread whose mean is the pivot. They are read twice, the second time from L2.
inline constexpr int PIVOT_VECTORS = 4;

template <typename S, bool Vectorised, Tiling F>
__global__ void __launch_bounds__(MAX_BLOCK_THREADS, resident_batch_norm_blocks(false, sizeof(S)))
    statistics_kernel(const BatchNormKernelParams<S> params) {
  using T = typename ComputeType<S>::type;
  using Block = BlockSlice<S, Vectorised, F>;
  constexpr int V = Block::V, W = Block::W, U = unroll_factor<S, Vectorised, 1>();
  const Block slice(params);
  const auto shared = allocate_shared<BatchNormShared<S>>();
  const auto load_input = [&](int64_t offset) { return load_vector<S, V>(params.input + offset); };

  // 1. The pivot.
  T pivot[2][W] = {};  // sum, count
  typename Block::Cursor cursor = slice.template begin<Order::ascending>();
  slice.template load_and_use<PIVOT_VECTORS, Order::ascending>(cursor, load_input,
                                                               [&](int64_t, const Vector<S, V>& loaded) {
                                                                 T x[V];
                                                                 loaded.widen(x);
#pragma unroll
                                                                 for (int i = 0; i < V; ++i) {
                                                                   const int w = W == 1 ? 0 : i;
                                                                   pivot[0][w] += x[i];
                                                                   pivot[1][w] += T(1);
                                                                 }
                                                               });
  reduce_channels<2>(pivot, slice, shared);
#pragma unroll
  for (int w = 0; w < W; ++w) {
    pivot[0][w] = pivot[1][w] > T(0) ? pivot[0][w] / pivot[1][w] : T(0);
  }

  // 2. The slice.
  T moment[2][W] = {};  // sum (x - pivot), sum (x - pivot)^2
  slice.template for_each_vector<U, Order::ascending>(load_input, [&](int64_t, const Vector<S, V>& loaded) {
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
  reduce_channels<2>(moment, slice, shared);
  const T size = static_cast<T>(slice.elements_per_channel());
  T partial[3][W];  // mean, sum of squares about it, number of elements
#pragma unroll
  for (int w = 0; w < W; ++w) {
    const T shift = size > T(0) ? moment[0][w] / size : T(0);
    partial[0][w] = pivot[0][w] + shift;
    partial[1][w] = moment[1][w] - moment[0][w] * shift;
    partial[2][w] = size;
  }
  if (params.splits == 1) {
#pragma unroll
    for (int w = 0; w < W; ++w) {
      if (slice.stores_channel(w)) {
        write_statistics(params, slice.channel(w), partial[0][w], partial[1][w]);
      }
    }
    return;
  }

  // 3. The last block of the tile merges the splits.
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    store_channels(slice, slice.split, k, partial[k]);
  }
  if (!is_last_block(params.tickets + slice.tile, static_cast<unsigned>(params.splits), shared.flag)) {
    return;
  }
  double mean[1][W] = {}, squares[1][W] = {};
  const double inverse_count = 1.0 / static_cast<double>(params.count());
  reduce_splits<1>(mean, slice, shared, [&](int split, double (&sum)[1][W]) {
    T split_partial[2][W];
    load_channels<S, Vectorised, F, T>(slice, params.partial_row(split, 0), split_partial[0]);
    load_channels<S, Vectorised, F, T>(slice, params.partial_row(split, 2), split_partial[1]);
#pragma unroll
    for (int w = 0; w < W; ++w) {
      sum[0][w] += static_cast<double>(split_partial[0][w]) * split_partial[1][w];
    }
  });
#pragma unroll
  for (int w = 0; w < W; ++w) {
    mean[0][w] *= inverse_count;
  }
  reduce_splits<1>(squares, slice, shared, [&](int split, double (&sum)[1][W]) {
    T split_partial[3][W];
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      load_channels<S, Vectorised, F, T>(slice, params.partial_row(split, k), split_partial[k]);
    }
#pragma unroll
    for (int w = 0; w < W; ++w) {
      const double delta = split_partial[0][w] - mean[0][w];
      sum[0][w] += split_partial[1][w] + delta * delta * split_partial[2][w];
    }
  });
#pragma unroll
  for (int w = 0; w < W; ++w) {
    if (slice.stores_channel(w)) {
      write_statistics(params, slice.channel(w), mean[0][w], squares[0][w]);
    }
  }
}

// Outside training: the running statistics.
template <typename S>
__global__ void __launch_bounds__(MAX_BLOCK_THREADS, 1)
    running_statistics_kernel(const BatchNormKernelParams<S> params) {
  using T = typename ComputeType<S>::type;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c < params.channels) {
    params.statistics[c] = params.running_mean[c];
    params.statistics[params.channels + c] =
        static_cast<T>(1.0 / sqrt(static_cast<double>(params.running_variance[c]) + params.eps));
  }
}

}  // namespace pal_fast::cuda

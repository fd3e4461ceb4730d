// Batch normalisation and its first and second derivative. A derivative is a per-channel reduction followed by an
// elementwise kernel. If a tile's channels are split over several blocks, sums_kernel reduces: each block stores
// partial sums, and the tile's last block to arrive adds them in a fixed order. Otherwise one block has all elements of
// its channels, and derivative_kernel reduces before its elementwise pass.
#pragma once

#include "cuda/batch_norm/elements.cuh"
#include "cuda/batch_norm/reductions.cuh"

namespace pal_fast::cuda {

// 1. y = weight * (x - mean) * r + bias, ReLU.
template <typename S, bool Vectorised, Tiling F>
__global__ void __launch_bounds__(MAX_BLOCK_THREADS, resident_batch_norm_blocks(false, sizeof(S)))
    forward_kernel(const BatchNormKernelParams<S> params) {
  using T = typename ComputeType<S>::type;
  using Block = BlockSlice<S, Vectorised, F>;
  constexpr int V = Block::V;
  const Block slice(params, Order::descending);
  const Channels<T, Block::W> channels(slice);
  const auto load_tensors = [&](int64_t offset) { return load<1, V>(params, offset); };
  slice.template for_each_vector<unroll_factor<S, Vectorised, 1>(), Order::descending>(
      load_tensors, [&](int64_t offset, const Loaded<S, V, 1>& loaded) {
        Element<T, V> e = elements_of(loaded, channels, params.relu);
#pragma unroll
        for (int i = 0; i < V; ++i) {
          e.y[i] = params.relu && e.y[i] <= T(0) ? T(0) : e.y[i];
        }
        store_vector<S>(params.output + offset, e.y);
      });
}

enum class Derivative { first, second };

// first: sum G, sum G xc; second: sum v, sum v xc, sum v G.
template <Derivative D>
inline constexpr int SUMS = D == Derivative::first ? 2 : 3;
// Tensors [B, C, L] that are read.
template <Derivative D>
inline constexpr int TENSORS = D == Derivative::first ? 2 : 3;

// The sums of a derivative over the block's slice.
template <Derivative D, typename S, bool Vectorised, Tiling F, typename T, int W>
__device__ __forceinline__ void reduce_slice(const BlockSlice<S, Vectorised, F>& slice, const Channels<T, W>& channels,
                                             const BatchNormShared<S>& shared, T (&sum)[SUMS<D>][W]) {
  constexpr int V = BlockSlice<S, Vectorised, F>::V, N = TENSORS<D>;
  const auto load_tensors = [&](int64_t offset) { return load<N, V>(slice.params, offset); };
  slice.template for_each_vector<unroll_factor<S, Vectorised, N>(), Order::ascending>(
      load_tensors, [&](int64_t, const Loaded<S, V, N>& loaded) {
        const Element<T, V> e = elements_of(loaded, channels, slice.params.relu);
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
  reduce_channels<SUMS<D>>(sum, slice, shared);
}

// 2. The sums of a derivative, if tiles are split.
template <Derivative D, typename S, bool Vectorised, Tiling F>
__global__ void __launch_bounds__(MAX_BLOCK_THREADS, resident_batch_norm_blocks(D == Derivative::second, sizeof(S)))
    sums_kernel(const BatchNormKernelParams<S> params) {
  using T = typename ComputeType<S>::type;
  constexpr int K = SUMS<D>, W = BlockSlice<S, Vectorised, F>::W;
  const BlockSlice<S, Vectorised, F> slice(params);
  const auto shared = allocate_shared<BatchNormShared<S>>();
  {
    const Channels<T, W> channels(slice);
    T sum[K][W] = {};
    reduce_slice<D>(slice, channels, shared, sum);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      store_channels(slice, slice.split, k, sum[k]);
    }
  }
  if (!is_last_block(params.tickets + slice.tile, static_cast<unsigned>(params.splits), shared.flag)) {
    return;
  }
  double total[K][W] = {};
  reduce_splits<K>(total, slice, shared, [&](int split, double (&to)[K][W]) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      T split_sum[W];
      load_channels<S, Vectorised, F, T>(slice, params.partial_row(split, k), split_sum);
#pragma unroll
      for (int w = 0; w < W; ++w) {
        to[k][w] += split_sum[w];
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
    store_channels(slice, params.splits, k, rounded);
  }
}

// 3. dx, or d_grad and d_input, and per-channel outputs, which the first split of each tile stores. If tiles are split
// the sums come from params.partial, otherwise the block computes them; with reduces = false nothing needs them.
template <Derivative D, typename S, bool Vectorised, Tiling F>
__global__ void __launch_bounds__(MAX_BLOCK_THREADS, resident_batch_norm_blocks(D == Derivative::second, sizeof(S)))
    derivative_kernel(const BatchNormKernelParams<S> params, const bool reduces) {
  using T = typename ComputeType<S>::type;
  using Block = BlockSlice<S, Vectorised, F>;
  constexpr int K = SUMS<D>, V = Block::V, W = Block::W, N = TENSORS<D>;
  const Block slice(params, Order::descending);
  const Channels<T, W> channels(slice);
  T sum[K][W] = {};
  if (reduces && params.splits > 1) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      load_channels<S, Vectorised, F, T>(slice, params.partial_row(params.splits, k), sum[k]);
    }
  } else if (reduces) {
    const auto shared = allocate_shared<BatchNormShared<S>>();
    reduce_slice<D>(slice, channels, shared, sum);
  }

  const T inverse_count = params.inverse_count;
  BatchNormAffine<T> first_affine[W], second_affine[W];
  T backward_sums[2][W] = {}, grad_sums[2][W] = {};  // s0, s1 and u0, u1
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    if (D == Derivative::second && params.sums) {
      load_channels<S, Vectorised, F, T>(slice, params.sums + k * params.channels, backward_sums[k]);
    }
    if (D == Derivative::second && params.grad_sums) {
      load_channels<S, Vectorised, F, T>(slice, params.grad_sums + k * params.channels, grad_sums[k]);
    }
  }
#pragma unroll
  for (int w = 0; w < W; ++w) {
    const bool stores = params.channel_output && slice.split == 0 && slice.stores_channel(w);
    const int64_t c = slice.channel(w);
    const T r = channels.r[w], weight = channels.weight[w];
    if constexpr (D == Derivative::first) {
      first_affine[w] =
          batch_norm_backward_coefficients<T>(params.training, inverse_count, weight, r, sum[0][w], sum[1][w] * r);
      if (stores) {
        params.channel_output[c] = sum[0][w];
        params.channel_output[params.channels + c] = sum[1][w] * r;
      }
    } else {
      const BatchNormDoubleBackward<T> second = batch_norm_double_backward_coefficients<T>(
          params.training, inverse_count, weight, r, backward_sums[0][w], backward_sums[1][w], grad_sums[0][w],
          grad_sums[1][w], sum[0][w], sum[1][w] * r, sum[2][w]);
      first_affine[w] = second.grad_grad;
      second_affine[w] = second.grad_input;
      if (stores) {
        params.channel_output[c] = second.grad_weight;
      }
    }
  }
  if (!params.output) {
    return;
  }

  const auto load_tensors = [&](int64_t offset) { return load<N, V>(params, offset); };
  slice.template for_each_vector<unroll_factor<S, Vectorised, N>(), Order::descending>(
      load_tensors, [&](int64_t offset, const Loaded<S, V, N>& loaded) {
        const Element<T, V> e = elements_of(loaded, channels, params.relu);
        T first[V], second[V];
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const int w = W == 1 ? 0 : i;
          const BatchNormAffine<T>& a = first_affine[w];
          if constexpr (D == Derivative::first) {
            first[i] = a.of_grad * e.grad[i] + a.of_input * e.xc[i] + a.constant;
          } else {
            const BatchNormAffine<T>& b = second_affine[w];
            first[i] = a.of_grad_grad * e.grad_grad[i] + a.of_input * e.xc[i] + a.constant;
            first[i] = params.relu && e.y[i] <= T(0) ? T(0) : first[i];
            second[i] = b.of_grad * e.grad[i] + b.of_grad_grad * e.grad_grad[i] + b.of_input * e.xc[i] + b.constant;
          }
        }
        store_vector<S>(params.output + offset, first);
        if constexpr (D == Derivative::second) {
          if (params.second_output) {
            store_vector<S>(params.second_output + offset, second);
          }
        }
      });
}

}  // namespace pal_fast::cuda

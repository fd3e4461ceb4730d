// Which elements a block of batch normalisation's kernels takes, and how a thread reads them.
#pragma once

#include "batch_norm_block.cuh"
#include "batch_norm_pass.h"

namespace pal_fast::cuda {

// A pass with its pointers typed, as kernels take it.
template <typename S>
struct TypedPass {
  using T = typename Computing<S>::type;

  int64_t batch, channels, length;  // B, C, L
  bool training;
  // How the blocks of a channel share it: `over_length` of them a sample, or row; parts in samples or rows, and in
  // vectors within a sample. Worked out on the host, because a division of 64 bits is a call on the device.
  int over_length;
  int64_t outer_part, inner_part;
  T inverse_count;      // 1 / M
  const S* input;       // [B, C, L]
  const S* grad;        // [B, C, L]
  const S* grad_grad;   // [B, C, L]
  const T* weight;      // [C]
  const T* bias;        // [C]
  const T* sums;        // [2, C]
  const T* grad_sums;   // [2, C]
  T* statistics;        // [2, C]
  T* running_mean;      // [C]
  T* running_variance;  // [C]
  double momentum, eps;
  S* output;          // [B, C, L]
  S* second_output;   // [B, C, L]
  T* channel_output;  // [2, C] or [C]
  T* partial;         // [splits, BATCH_NORM_PARTIAL_ROWS, C]

  [[nodiscard]] __device__ int64_t count() const { return batch * length; }  // M
  [[nodiscard]] __device__ T* partial_of(int64_t split, int row) const {
    return partial + (split * BATCH_NORM_PARTIAL_ROWS + row) * channels;
  }
};

struct Range {
  int64_t begin, end;
};

// Part `index` of [0, size) in parts of `each`.
[[nodiscard]] __device__ __forceinline__ Range part_of(int64_t size, int64_t each, int64_t index) {
  const int64_t begin = each * index;
  return {begin < size ? begin : size, begin + each < size ? begin + each : size};
}

// Fills in what TypedPass says of the shares.
template <int V, bool Rows, typename S>
void set_shares(TypedPass<S>& pass, int64_t over_batch, int64_t over_length) {
  const auto parts = [](int64_t size, int64_t count) { return (size + count - 1) / count; };
  pass.over_length = static_cast<int>(over_length);
  pass.outer_part = Rows ? parts(pass.batch * pass.length, over_batch * over_length) : parts(pass.batch, over_batch);
  pass.inner_part = Rows ? 0 : parts(pass.length / V, over_length);
  pass.inverse_count =
      typename Computing<S>::type(1) / static_cast<typename Computing<S>::type>(pass.batch * pass.length);
}

// The share of a block, V elements at a time. Channels outermost (Rows = false): blockIdx.x is the channel, the block
// takes a part of its B * L elements. Channels innermost: it takes ROW_LANES * V channels of a part of the B * L rows.
// blockIdx.y counts the parts.
template <typename S, int V, bool Rows>
struct Share {
  // How many channels a thread works on.
  static constexpr int W = Rows ? V : 1;

  const TypedPass<S>& pass;
  int64_t channel;  // the thread's first
  Range outer;      // samples or rows
  Range inner;      // vectors within a plane

  __device__ explicit Share(const TypedPass<S>& given) : pass(given) {
    if constexpr (Rows) {
      channel = (static_cast<int64_t>(blockIdx.x) * ROW_LANES + threadIdx.x) * V;
      outer = part_of(pass.count(), pass.outer_part, blockIdx.y);
      inner = {0, 0};
    } else {
      channel = blockIdx.x;
      const int split = blockIdx.y;
      outer = part_of(pass.batch, pass.outer_part, split / pass.over_length);
      inner = part_of(pass.length / V, pass.inner_part, split % pass.over_length);
    }
  }

  [[nodiscard]] __device__ bool active() const { return channel < pass.channels; }

  // How many elements of each channel the block takes.
  [[nodiscard]] __device__ int64_t size() const {
    return (outer.end - outer.begin) * (Rows ? 1 : (inner.end - inner.begin) * V);
  }

  template <typename Visit>
  __device__ __forceinline__ void each(const Visit& visit) const {
    for (int64_t o = outer.begin + threadIdx.y; o < outer.end; o += blockDim.y) {
      if constexpr (Rows) {
        if (active()) {
          visit(o * pass.channels + channel);
        }
      } else {
        const int64_t plane = (o * pass.channels + channel) * pass.length;
        for (int64_t i = inner.begin + threadIdx.x; i < inner.end; i += blockDim.x) {
          visit(plane + i * V);
        }
      }
    }
  }
};

// What every pass knows of a thread's channels.
template <typename T, int W>
struct Channels {
  T mean[W], r[W], weight[W], bias[W];

  template <typename S>
  __device__ Channels(const TypedPass<S>& pass, int64_t first) {
#pragma unroll
    for (int i = 0; i < W; ++i) {
      const bool there = first + i < pass.channels;
      const int64_t c = there ? first + i : 0;
      mean[i] = pass.statistics[c];
      r[i] = pass.statistics[pass.channels + c];
      weight[i] = pass.weight ? pass.weight[c] : T(1);
      bias[i] = pass.bias ? pass.bias[c] : T(0);
    }
  }
};

// V elements: xc = x - mean, y = the output before the ReLU, G = grad behind the ReLU's mask, v = grad_grad.
template <typename T, int V>
struct Element {
  T xc[V], y[V], grad[V], grad_grad[V];
};

template <int V, bool Relu, bool ReadsGrad, bool ReadsGradGrad, typename S, typename T, int W>
[[nodiscard]] __device__ __forceinline__ Element<T, V> read(const TypedPass<S>& pass, const Channels<T, W>& channels,
                                                            int64_t at) {
  Element<T, V> e = {};
  load<S, V>(pass.input + at, e.xc);
  if constexpr (ReadsGrad) {
    load<S, V>(pass.grad + at, e.grad);
  }
  if constexpr (ReadsGradGrad) {
    if (pass.grad_grad) {
      load<S, V>(pass.grad_grad + at, e.grad_grad);
    }
  }
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const int w = W == 1 ? 0 : i;
    e.xc[i] -= channels.mean[w];
    e.y[i] = channels.weight[w] * channels.r[w] * e.xc[i] + channels.bias[w];
    if (Relu && ReadsGrad && e.y[i] <= T(0)) {
      e.grad[i] = 0;
    }
  }
  return e;
}

}  // namespace pal_fast::cuda

// The tiles of the forward of "each": the attribution of a few channels, at a chunk of their cells, in shared memory.
#pragma once

#include "layer.cuh"
#include "pal_loss_plan.h"

namespace pal_fast::cuda {

// An EachPlan, as kernels take it.
struct EachSweep {
  int chunk, chunks, channels_at_once, lanes, pitch, channels_per_split, splits;
};

[[nodiscard]] inline EachSweep each_sweep(const EachPlan& plan, int64_t cells) {
  return {static_cast<int>(plan.chunk),
          static_cast<int>(ceil_div(cells, plan.chunk)),
          static_cast<int>(plan.channels_at_once),
          static_cast<int>(plan.lanes),
          static_cast<int>(plan.pitch),
          static_cast<int>(plan.channels_per_split),
          static_cast<int>(plan.splits)};
}

// Has L2 fetch what fill_tile() will load.
template <bool ChannelsLast, typename S>
__device__ __forceinline__ void prefetch_tile(const Layer<S>& layer, int64_t sample_begin, int first, int last,
                                              int begin, int end) {
  constexpr int SECTOR = 32 / static_cast<int>(sizeof(S));
  const int length = end - begin;
  const int64_t from = ChannelsLast ? sample_begin + static_cast<int64_t>(begin) * layer.channels + first
                                    : sample_begin + static_cast<int64_t>(first) * layer.cells + begin;
  // A run a cell, or one of all channels.
  const int runs = ChannelsLast ? length : 1;
  const int run = ChannelsLast ? last - first : (last - first - 1) * layer.cells + length;
  const int sectors = (run + SECTOR - 1) / SECTOR + 1;  // a run need not start with a sector
  for (int i = threadIdx.x; i < runs * sectors; i += blockDim.x) {
    const int64_t at = from + (ChannelsLast ? static_cast<int64_t>(i / sectors) * layer.channels : 0) +
                       min((ChannelsLast ? i % sectors : i) * SECTOR, run - 1);
    if (layer.activation) {
      prefetch(layer.activation + at);
    }
    if (layer.gradient) {
      prefetch(layer.gradient + at);
    }
  }
}

// Puts the attribution of channels [first, last), cells [begin, end), into the tile. Returns where the first channel's
// first cell lies; channels lie sweep.pitch apart.
template <bool ChannelsLast, typename S, typename T>
[[nodiscard]] __device__ __forceinline__ int fill_tile(const Layer<S>& layer, Pointer<T> tile, const EachSweep& sweep,
                                                       int64_t sample_begin, int first, int last, int begin, int end) {
  constexpr int V = VECTOR<S>, U = 2;
  const int threads = blockDim.x, thread = threadIdx.x;
  if constexpr (ChannelsLast) {
    const int length = end - begin;
    if (layer.aligned && layer.channels % V == 0) {
      // A vector is V channels of a cell; `first` is a multiple of V.
      const int across = (last - first + V - 1) / V, total = across * length;
      for (int index = thread; index < total; index += U * threads) {
        int64_t at[U];
        bool there[U];
        int to[U];
        T a[U][V];
#pragma unroll
        for (int u = 0; u < U; ++u) {
          const int i = index + u * threads, cell = i / across, vector = i % across;
          there[u] = i < total;
          at[u] = sample_begin + static_cast<int64_t>(begin + cell) * layer.channels + first + vector * V;
          to[u] = vector * V * sweep.pitch + cell;
        }
        load_attribution<true>(layer, at, there, a);
#pragma unroll
        for (int u = 0; u < U; ++u) {
#pragma unroll
          for (int e = 0; e < V; ++e) {
            if (there[u]) {
              tile[to[u] + e * sweep.pitch] = a[u][e];
            }
          }
        }
      }
    } else {
      const int across = last - first;
      for (int index = thread; index < across * length; index += threads) {
        const int cell = index / across, channel = index % across;
        const int64_t at = sample_begin + static_cast<int64_t>(begin + cell) * layer.channels + first + channel;
        tile[channel * sweep.pitch + cell] = layer.attribution(at);
      }
    }
    return 0;
  } else {
    // One flat run: several channels have all their cells in it, and a part of a map has one channel.
    const int64_t from = sample_begin + static_cast<int64_t>(first) * layer.cells + begin;
    const int64_t to = from + static_cast<int64_t>(last - first - 1) * layer.cells + (end - begin);
    const int64_t origin = from / V * V;
    int64_t vectors = (from + V - 1) / V * V, vectors_end = to / V * V;
    if (!layer.aligned || vectors_end <= vectors) {
      vectors = vectors_end = to;
    }
    for (int64_t i = vectors + thread * V; i < vectors_end; i += U * threads * V) {
      int64_t at[U];
      bool there[U];
      T a[U][V];
#pragma unroll
      for (int u = 0; u < U; ++u) {
        at[u] = i + u * threads * V;
        there[u] = at[u] < vectors_end;
      }
      load_attribution<true>(layer, at, there, a);
#pragma unroll
      for (int u = 0; u < U; ++u) {
#pragma unroll
        for (int e = 0; e < V; e += VECTOR<T>) {
          T some[VECTOR<T>];
#pragma unroll
          for (int j = 0; j < VECTOR<T>; ++j) {
            some[j] = a[u][e + j];
          }
          if (there[u]) {
            store_vector_shared<T>(tile + (at[u] + e - origin), some);
          }
        }
      }
    }
    // Before the first whole vector and behind the last one.
    const int64_t before = vectors - from, ends = before + to - vectors_end;
    for (int64_t i = thread; i < ends; i += threads) {
      const int64_t at = i < before ? from + i : vectors_end + i - before;
      tile[at - origin] = layer.attribution(at);
    }
    return static_cast<int>(from - origin);
  }
}

}  // namespace pal_fast::cuda

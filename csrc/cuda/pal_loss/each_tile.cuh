// The tiles of the forward of "each": the attribution of a few channels at a chunk of their cells, in shared memory.
#pragma once

#include "cuda/pal_loss/layer.cuh"
#include "cuda/pal_loss/plan.h"

namespace pal_fast::cuda {

// Kernel argument: an EachPlan.
struct EachSweep {
  int chunk, chunks, tile_channels, tiles, lanes, pitch, channels_per_split, splits;
};

[[nodiscard]] inline EachSweep each_sweep(const EachPlan& plan, int64_t cells) {
  return {static_cast<int>(plan.chunk),
          static_cast<int>(ceil_div(cells, plan.chunk)),
          static_cast<int>(plan.tile_channels),
          static_cast<int>(plan.tiles),
          static_cast<int>(plan.lanes),
          static_cast<int>(plan.pitch),
          static_cast<int>(plan.channels_per_split),
          static_cast<int>(plan.splits)};
}

// Prefetches into L2 what fill_tile() will load.
template <bool ChannelsLast, typename S>
__device__ __forceinline__ void prefetch_tile(const Layer<S>& layer, int64_t sample_begin, int first, int last,
                                              int begin, int end) {
  constexpr int SECTOR = 32 / static_cast<int>(sizeof(S));
  const int length = end - begin;
  const int64_t from = ChannelsLast ? sample_begin + static_cast<int64_t>(begin) * layer.channels + first
                                    : sample_begin + static_cast<int64_t>(first) * layer.cells + begin;
  // Contiguous runs of memory: one per cell, or a single one of all channels.
  const int runs = ChannelsLast ? length : 1;
  const int run = ChannelsLast ? last - first : (last - first - 1) * layer.cells + length;
  const int sectors = (run + SECTOR - 1) / SECTOR + 1;  // a run need not start with a sector
  for (int i = threadIdx.x; i < runs * sectors; i += blockDim.x) {
    const int64_t element = from + (ChannelsLast ? static_cast<int64_t>(i / sectors) * layer.channels : 0) +
                            min((ChannelsLast ? i % sectors : i) * SECTOR, run - 1);
    if (layer.activation) {
      prefetch_l2(layer.activation + element);
    }
    if (layer.gradient) {
      prefetch_l2(layer.gradient + element);
    }
  }
}

// Writes the attribution of channels [first, last), cells [begin, end), to the tile; channels lie sweep.pitch apart.
// Returns the index of the first channel's first cell.
template <bool ChannelsLast, typename S, typename T>
[[nodiscard]] __device__ __forceinline__ int fill_tile(const Layer<S>& layer, Pointer<T> tile, const EachSweep& sweep,
                                                       int64_t sample_begin, int first, int last, int begin, int end) {
  constexpr int V = VECTOR_SIZE<S>, U = 2;
  const int threads = blockDim.x, thread = threadIdx.x;
  if constexpr (ChannelsLast) {
    const int length = end - begin;
    if (layer.aligned && layer.channels % V == 0) {
      // A vector is V channels of a cell, which are scattered to V rows of the tile; `first` is a multiple of V.
      const int cell_vectors = (last - first + V - 1) / V, total = cell_vectors * length;
      for (int index = thread; index < total; index += U * threads) {
        int64_t element[U];
        bool valid[U];
        int target[U];
        T a[U][V];
#pragma unroll
        for (int u = 0; u < U; ++u) {
          const int i = index + u * threads, cell = i / cell_vectors, vector = i % cell_vectors;
          valid[u] = i < total;
          element[u] = sample_begin + static_cast<int64_t>(begin + cell) * layer.channels + first + vector * V;
          target[u] = vector * V * sweep.pitch + cell;
        }
        load_attribution<true>(layer, element, valid, a);
#pragma unroll
        for (int u = 0; u < U; ++u) {
#pragma unroll
          for (int e = 0; e < V; ++e) {
            if (valid[u]) {
              tile[target[u] + e * sweep.pitch] = a[u][e];
            }
          }
        }
      }
    } else {
      const int channels = last - first;
      for (int index = thread; index < channels * length; index += threads) {
        const int cell = index / channels, channel = index % channels;
        const int64_t element = sample_begin + static_cast<int64_t>(begin + cell) * layer.channels + first + channel;
        tile[channel * sweep.pitch + cell] = layer.attribution(element);
      }
    }
    return 0;
  } else {
    // One contiguous run: several channels with all their cells, or a chunk of the cells of one channel.
    const int64_t from = sample_begin + static_cast<int64_t>(first) * layer.cells + begin;
    const int64_t to = from + static_cast<int64_t>(last - first - 1) * layer.cells + (end - begin);
    const int64_t origin = from / V * V;
    int64_t vectors = (from + V - 1) / V * V, vectors_end = to / V * V;
    if (!layer.aligned || vectors_end <= vectors) {
      vectors = vectors_end = to;
    }
    for (int64_t i = vectors + thread * V; i < vectors_end; i += U * threads * V) {
      int64_t element[U];
      bool valid[U];
      T a[U][V];
#pragma unroll
      for (int u = 0; u < U; ++u) {
        element[u] = i + u * threads * V;
        valid[u] = element[u] < vectors_end;
      }
      load_attribution<true>(layer, element, valid, a);
#pragma unroll
      for (int u = 0; u < U; ++u) {
#pragma unroll
        for (int e = 0; e < V; e += VECTOR_SIZE<T>) {
          T vector[VECTOR_SIZE<T>];
#pragma unroll
          for (int j = 0; j < VECTOR_SIZE<T>; ++j) {
            vector[j] = a[u][e + j];
          }
          if (valid[u]) {
            store_vector_shared<T>(tile + (element[u] + e - origin), vector);
          }
        }
      }
    }
    // Head and tail.
    const int64_t head = vectors - from, scalars = head + to - vectors_end;
    for (int64_t i = thread; i < scalars; i += threads) {
      const int64_t element = i < head ? from + i : vectors_end + i - head;
      tile[element - origin] = layer.attribution(element);
    }
    return static_cast<int>(from - origin);
  }
}

}  // namespace pal_fast::cuda

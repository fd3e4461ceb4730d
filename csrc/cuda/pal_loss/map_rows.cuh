// The map kernel's part for contiguous (NCHW) layers: each thread accumulates the attribution of a column of a row
// sweep in registers, so a block has partial maps of its split of the rows.
#pragma once

#include "cuda/pal_loss/map_shared.cuh"
#include "cuda/pal_loss/row_sweep.cuh"
#include "cuda/pal_loss/summed_map.cuh"

namespace pal_fast::cuda {

// Vectors of each tensor that a thread has in flight.
inline constexpr int SWEEP_UNROLL = 4;

// Prefetches into L2 the vectors that a thread loads first, to overlap with the drawing of the heatmap.
template <typename S>
__device__ __forceinline__ void prefetch_rows(const Layer<S>& layer, const ThreadRows& rows, int64_t begin,
                                              int64_t end) {
#pragma unroll
  for (int u = 0; u < SWEEP_UNROLL; ++u) {
    const int64_t i = rows.first + u * rows.stride;
    if (i >= begin && i < end) {
      layer.prefetch(i);
    }
  }
}

// sum[e] += a - pivot of element e of each of the thread's vectors, within [begin, end), the n channels of the sample
// that take part. All: also accumulates the moments of a - pivot.
template <bool All, typename S, typename T>
__device__ __forceinline__ void sweep_rows(const Layer<S>& layer, const ThreadRows& rows, int64_t begin, int64_t end,
                                           T pivot, T (&sum)[VECTOR_SIZE<S>], MomentSums& moments) {
  constexpr int V = VECTOR_SIZE<S>, U = SWEEP_UNROLL;
  // A vector that is misaligned or partly outside [begin, end).
  const auto accumulate_elements = [&](int64_t first) {
#pragma unroll
    for (int e = 0; e < V; ++e) {
      if (first + e >= begin && first + e < end) {
        const T a = layer.attribution(first + e) - pivot;
        sum[e] += a;
        if constexpr (All) {
          moments.add(static_cast<double>(a));
        }
      }
    }
  };
  // Vectors inside [begin, end) start below body_end.
  int64_t i = rows.first < begin ? rows.first + rows.stride : rows.first;
  const int64_t body_end = layer.aligned ? end - V + 1 : i;
  const auto accumulate_vectors = [&]<bool Predicated>() {
    int64_t index[U];
    bool valid[U];
    T a[U][V];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      index[u] = i + u * rows.stride;
      valid[u] = index[u] < body_end;
    }
    load_attribution<Predicated>(layer, index, valid, a, pivot);
#pragma unroll
    for (int e = 0; e < V; ++e) {
#pragma unroll
      for (int u = 0; u < U; ++u) {
        sum[e] += a[u][e];
      }
    }
    if constexpr (All) {
      moments.add<Predicated>(a, valid);
    }
  };
  for (; i + (U - 1) * rows.stride < body_end; i += U * rows.stride) {
    accumulate_vectors.template operator()<false>();
  }
  if (i < body_end) {
    accumulate_vectors.template operator()<true>();
    while (i < body_end) {
      i += rows.stride;
    }
  }
  const int64_t tail = i;
  // The vector across `begin` and the one across `end`; all vectors if the layer is not aligned.
  for (int64_t first = rows.first < begin ? rows.first : tail; first < end;) {
    accumulate_elements(first);
    first = first < begin ? tail : first + rows.stride;
  }
}

// One block's part of the sum over channels.
template <typename S>
struct MapRows {
  using T = typename ComputeType<S>::type;
  static constexpr int DRAW_UNROLL = 4;

  const Layer<S>& layer;
  const RowSweep& sweep;
  int64_t sample, begin, end;  // elements [begin, end) are the sample's channels that take part
  int part;
  ThreadRows rows;

  __device__ __forceinline__ MapRows(const Layer<S>& given, const RowSweep& plan, int64_t index, int block)
      : layer(given),
        sweep(plan),
        sample(index),
        begin(index * given.sample_elements()),
        end(begin + static_cast<int64_t>(given.count) * given.cells),
        part(block),
        rows(plan, begin, end, VECTOR_SIZE<S>, block) {}

  __device__ __forceinline__ void prefetch() const { prefetch_rows(layer, rows, begin, end); }
  [[nodiscard]] __device__ __forceinline__ T pivot() const { return pivot_of(layer, begin, end); }

  // Cells by which the sample's first row starts before the sample.
  [[nodiscard]] __device__ __forceinline__ int rotation() const {
    return static_cast<int>(begin % VECTOR_SIZE<S>) % layer.cells;
  }
  // The sample's partial maps lie one after another: a map of each split or, if a row has several tiles, its row, which
  // holds several maps.
  [[nodiscard]] __device__ __forceinline__ int64_t partial_elements() const {
    return sweep.tiles == 1 ? layer.cells : sweep.row_elements;
  }

  // Sums the block's a - pivot to shared.map if the sample has one block, otherwise to its partial map.
  template <bool All>
  __device__ __forceinline__ void sum_channels(const MapShared<S>& shared, Pointer<T> partial_maps, T pivot,
                                               MomentSums& moments) const {
    constexpr int V = VECTOR_SIZE<S>;
    T sum[V] = {};
    sweep_rows<All>(layer, rows, begin, end, pivot, sum, moments);
    const int split = part / sweep.tiles, tile = part % sweep.tiles;
    const Pointer<T> partial_map = partial_maps + (sample * sweep.splits + split) * partial_elements();
    if (sweep.tiles > 1) {
      if (rows.active) {
        const int64_t column = static_cast<int64_t>(tile) * sweep.tile_columns + threadIdx.x;
#pragma unroll
        for (int e = 0; e < V; e += VECTOR_SIZE<T>) {
          T vector[VECTOR_SIZE<T>];
#pragma unroll
          for (int i = 0; i < VECTOR_SIZE<T>; ++i) {
            vector[i] = sum[e + i];
          }
          store_vector<T>(partial_map + (column * V + e), vector);
        }
      }
      return;
    }
    // The block has whole rows, and sums their columns to one map.
    if (rows.active) {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        shared.sums[threadIdx.x * V + e] = sum[e];
      }
    }
    __syncthreads();
    const int cells = layer.cells, first = rotation();
    const Pointer<T> map = sweep.splits == 1 ? shared.map : partial_map;
    sum_maps<T>(shared.sums, sweep.rows_per_step * sweep.row_elements, cells, shared.scratch,
                [&](int index, T value) { map[index < first ? index - first + cells : index - first] = value; });
  }

  // The sample's map, from those of all its blocks.
  [[nodiscard]] __device__ __forceinline__ SummedMap<T> combine(const MapShared<S>& shared,
                                                                Pointer<T> partial_maps) const {
    const int cells = layer.cells;
    const int64_t total = sweep.splits * partial_elements();
    const Pointer<T> sample_maps = partial_maps + sample * total;
    // In place if not in shared memory: every index is read and written by one thread.
    const Pointer<T> map = map_fits_shared<T>(cells) ? shared.map : sample_maps;
    if (sweep.blocks_per_sample() > 1) {
      sum_maps<T>(sample_maps, total, cells, shared.scratch, [&](int index, T value) { map[index] = value; });
    }
    return {map, cells, sweep.tiles == 1 ? 0 : rotation()};
  }
};

}  // namespace pal_fast::cuda

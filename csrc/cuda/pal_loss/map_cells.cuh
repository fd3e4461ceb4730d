// The map kernel's part for channels_last (NHWC) layers: a group of up to a warp's lanes takes a cell, each lane
// strided vectors of its channels, and reduces by shuffles. So a block has whole sums at its cells.
#pragma once

#include "cuda/pal_loss/map_shared.cuh"
#include "cuda/pal_loss/plan.h"
#include "cuda/pal_loss/summed_map.cuh"

namespace pal_fast::cuda {

// Kernel argument: a CellPlan.
struct CellSweep {
  int lanes, splits;

  [[nodiscard]] __host__ __device__ int blocks_per_sample() const { return splits; }
};

[[nodiscard]] inline CellSweep cell_sweep(const CellPlan& plan) {
  return {static_cast<int>(plan.lanes), static_cast<int>(plan.splits)};
}

// This thread's cells: those at first, first + stride, ... below the sample's number of cells, and its lane in the
// group that takes each of them. Cells of the block's first group start at block_first.
struct ThreadCells {
  int lane, lanes, block_first, group, stride;

  __device__ __forceinline__ ThreadCells(const CellSweep& sweep, int part) : lanes(sweep.lanes) {
    const int groups = static_cast<int>(blockDim.x) / lanes;
    lane = static_cast<int>(threadIdx.x) % lanes;
    group = static_cast<int>(threadIdx.x) / lanes;
    block_first = part * groups;
    stride = sweep.splits * groups;
  }
};

// Vectors of each tensor that a thread has in flight for each of SWEEP_CELLS cells.
inline constexpr int SWEEP_VECTORS = 2;

// Prefetches into L2 the vectors that a thread loads first, to overlap with the drawing of the heatmap.
template <typename S>
__device__ __forceinline__ void prefetch_cells(const Layer<S>& layer, const ThreadCells& thread, int64_t begin) {
  const int cells_in_flight = thread.block_first + thread.stride < layer.cells ? SWEEP_CELLS : 1;
#pragma unroll
  for (int u = 0; u < SWEEP_CELLS * SWEEP_VECTORS; ++u) {
    const int cell = thread.block_first + u % cells_in_flight * thread.stride + thread.group;
    const int channel = (thread.lane + u / cells_in_flight * thread.lanes) * VECTOR_SIZE<S>;
    if (cell < layer.cells && channel < layer.count) {
      layer.prefetch(begin + static_cast<int64_t>(cell) * layer.channels + channel);
    }
  }
}

// map[cell] = sum of a - pivot over channels, for the block's cells of the sample that starts at element `begin`. All:
// also accumulates the moments of a - pivot.
template <bool All, typename S, typename T>
__device__ __forceinline__ void sweep_cells(const Layer<S>& layer, const ThreadCells& thread, int64_t begin, T pivot,
                                            Pointer<T> map, MomentSums& moments) {
  constexpr int V = VECTOR_SIZE<S>;
  const int lane = thread.lane, lanes = thread.lanes, cells = layer.cells;
  // Whether the last vector of a cell may extend into the cell's channels that take no part, which are masked. Not for
  // All: MomentSums counts whole vectors.
  const bool masks_last = !All && layer.aligned && layer.channels % V == 0;
  // A group handles CELLS cells per iteration, with DEPTH vectors of each in flight.
  const auto sweep_group_cells = [&]<int CELLS, int DEPTH>(int first_cell) {
    constexpr int U = CELLS * DEPTH;
    // A cell's channels start at cell_begin: `head` unaligned elements, `body` elements in whole vectors, and the tail.
    int64_t cell_begin[CELLS];
    int head[CELLS], body[CELLS];
    T sum[CELLS] = {};
    int max_body = 0, min_body = layer.count;
#pragma unroll
    for (int c = 0; c < CELLS; ++c) {
      const int cell = first_cell + c * thread.stride + thread.group;
      cell_begin[c] = begin + static_cast<int64_t>(cell) * layer.channels;
      const int count = cell < cells ? layer.count : 0;
      head[c] = static_cast<int>(-cell_begin[c] & (V - 1));
      body[c] = (count - head[c]) / V * V;
      min_body = min(min_body, body[c]);
      if (masks_last) {
        body[c] = (count + V - 1) / V * V;
      } else if (!layer.aligned || body[c] <= 0) {
        head[c] = count;
        body[c] = min_body = 0;
      }
      max_body = max(max_body, body[c]);
    }
    const auto accumulate_vectors = [&]<bool Predicated>(int first) {
      int64_t index[U];
      bool valid[U];
      T a[U][V];
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const int c = u % CELLS, offset = first + u / CELLS * lanes * V;
        index[u] = cell_begin[c] + head[c] + offset;
        valid[u] = offset < body[c];
      }
      load_attribution<Predicated>(layer, index, valid, a, pivot);
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const int remaining = layer.count - head[u % CELLS] - first - u / CELLS * lanes * V;
#pragma unroll
        for (int e = 0; e < V; ++e) {
          sum[u % CELLS] += All || !Predicated || e < remaining ? a[u][e] : T(0);
        }
      }
      if constexpr (All) {
        moments.add<Predicated>(a, valid);
      }
    };
    int i = lane * V;
    for (; i + (DEPTH - 1) * lanes * V < min_body; i += DEPTH * lanes * V) {
      accumulate_vectors.template operator()<false>(i);
    }
    for (; i < max_body; i += DEPTH * lanes * V) {
      accumulate_vectors.template operator()<true>(i);
    }
#pragma unroll
    for (int c = 0; c < CELLS; ++c) {
      const int cell = first_cell + c * thread.stride + thread.group;
      // Head and tail.
      const int scalars = (cell < cells ? layer.count : 0) - body[c];  // negative if the last vector is masked
      for (int i = lane; i < scalars; i += lanes) {
        const T a = layer.attribution(cell_begin[c] + (i < head[c] ? i : i + body[c])) - pivot;
        sum[c] += a;
        if constexpr (All) {
          moments.add(static_cast<double>(a));
        }
      }
      sum[c] = warp_reduce(sum[c], lanes, Sum());
      if (lane == 0 && cell < cells) {
        map[cell] = sum[c];
      }
    }
  };
  // All threads run the same number of iterations, because warp_reduce needs all lanes.
  int first_cell = thread.block_first;
  for (; first_cell + thread.stride < cells; first_cell += SWEEP_CELLS * thread.stride) {
    sweep_group_cells.template operator()<SWEEP_CELLS, SWEEP_VECTORS>(first_cell);
  }
  if (first_cell < cells) {
    sweep_group_cells.template operator()<1, SWEEP_CELLS * SWEEP_VECTORS>(first_cell);
  }
}

// One block's part of the sum over channels.
template <typename S>
struct MapCells {
  using T = typename ComputeType<S>::type;
  static constexpr int DRAW_UNROLL = 1;  // the sweep leaves no registers for more

  const Layer<S>& layer;
  int64_t sample, begin;
  int blocks;
  ThreadCells thread;

  __device__ __forceinline__ MapCells(const Layer<S>& given, const CellSweep& sweep, int64_t index, int block)
      : layer(given),
        sample(index),
        begin(index * given.sample_elements()),
        blocks(sweep.blocks_per_sample()),
        thread(sweep, block) {}

  __device__ __forceinline__ void prefetch() const { prefetch_cells(layer, thread, begin); }
  [[nodiscard]] __device__ __forceinline__ T pivot() const { return pivot_of(layer, begin, begin + layer.count); }

  // Sums a - pivot at the block's cells: in shared.map if the sample has one block and its map fits, otherwise in the
  // sample's partial map, to which all its blocks write.
  template <bool All>
  __device__ __forceinline__ void sum_channels(const MapShared<S>& shared, Pointer<T> partial_maps, T pivot,
                                               MomentSums& moments) const {
    const bool in_shared = blocks == 1 && map_fits_shared<T>(layer.cells);
    sweep_cells<All>(layer, thread, begin, pivot, in_shared ? shared.map : partial_maps + sample * layer.cells,
                     moments);
  }

  // The sample's map, in shared memory if it fits.
  [[nodiscard]] __device__ __forceinline__ SummedMap<T> combine(const MapShared<S>& shared,
                                                                Pointer<T> partial_maps) const {
    const int cells = layer.cells;
    const Pointer<T> sample_map = partial_maps + sample * cells;
    if (!map_fits_shared<T>(cells)) {
      return {sample_map, cells, 0};
    }
    if (blocks > 1) {
      sum_maps<T>(sample_map, cells, cells, shared.scratch, [&](int cell, T value) { shared.map[cell] = value; });
    }
    return {shared.map, cells, 0};
  }
};

}  // namespace pal_fast::cuda

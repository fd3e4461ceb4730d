// channels_last (NHWC) layers: one block's sums of the attribution over channels, at its share of a sample's cells. A
// group of up to a warp's lanes takes a cell, each lane strided vectors of its channels, and reduces by shuffles.
#pragma once

#include "cuda/pal_loss/layer.cuh"
#include "cuda/pal_loss/plan.h"

namespace pal_fast::cuda {

// Kernel argument: a CellPlan.
struct CellSweep {
  int lanes, cells_per_split, splits;
};

// Vectors of each tensor that a thread has in flight for each of SWEEP_CELLS cells.
inline constexpr int SWEEP_VECTORS = 2;

// Prefetches into L2 the vectors that a thread loads first, to overlap with the drawing of the heatmap.
template <typename S>
__device__ __forceinline__ void prefetch_cells(const Layer<S>& layer, int64_t begin, int lanes, int first_cell,
                                               int last_cell) {
  const int lane = static_cast<int>(threadIdx.x) % lanes, group = static_cast<int>(threadIdx.x) / lanes;
  const int groups = static_cast<int>(blockDim.x) / lanes;
  const int cells_in_flight = first_cell + groups < last_cell ? SWEEP_CELLS : 1;
#pragma unroll
  for (int u = 0; u < SWEEP_CELLS * SWEEP_VECTORS; ++u) {
    const int cell = first_cell + u % cells_in_flight * groups + group;
    const int channel = (lane + u / cells_in_flight * lanes) * VECTOR_SIZE<S>;
    if (cell < last_cell && channel < layer.count) {
      layer.prefetch(begin + static_cast<int64_t>(cell) * layer.channels + channel);
    }
  }
}

// map[cell] = sum of a - pivot over channels, for cells [first_cell, last_cell) of the sample that starts at element
// `begin`. All: also accumulates the moments of a - pivot.
template <bool All, typename S, typename T>
__device__ __forceinline__ void sweep_cells(const Layer<S>& layer, int64_t begin, int lanes, int first_cell,
                                            int last_cell, T pivot, Pointer<T> map, MomentSums& moments) {
  constexpr int V = VECTOR_SIZE<S>;
  const int lane = static_cast<int>(threadIdx.x) % lanes, group = static_cast<int>(threadIdx.x) / lanes;
  const int groups = static_cast<int>(blockDim.x) / lanes;
  // Whether the last vector of a cell may extend into the cell's channels that take no part, which are masked. Not for
  // All: MomentSums counts whole vectors.
  const bool masks_last = !All && layer.aligned && layer.channels % V == 0;
  // A group handles CELLS cells per iteration, with DEPTH vectors of each in flight.
  const auto sweep_group_cells = [&]<int CELLS, int DEPTH>(int group_cell) {
    constexpr int U = CELLS * DEPTH;
    // A cell's channels start at cell_begin: `head` unaligned elements, `body` elements in whole vectors, and the tail.
    int64_t cell_begin[CELLS];
    int head[CELLS], body[CELLS];
    T sum[CELLS] = {};
    int max_body = 0, min_body = layer.count;
#pragma unroll
    for (int c = 0; c < CELLS; ++c) {
      const int cell = group_cell + c * groups + group;
      cell_begin[c] = begin + static_cast<int64_t>(cell) * layer.channels;
      const int count = cell < last_cell ? layer.count : 0;
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
      const int cell = group_cell + c * groups + group;
      // Head and tail.
      const int scalars = (cell < last_cell ? layer.count : 0) - body[c];  // negative if the last vector is masked
      for (int i = lane; i < scalars; i += lanes) {
        const T a = layer.attribution(cell_begin[c] + (i < head[c] ? i : i + body[c])) - pivot;
        sum[c] += a;
        if constexpr (All) {
          moments.add(static_cast<double>(a));
        }
      }
      sum[c] = warp_reduce(sum[c], lanes, Sum());
      if (lane == 0 && cell < last_cell) {
        map[cell] = sum[c];
      }
    }
  };
  // All threads run the same number of iterations, because warp_reduce needs all lanes.
  int group_cell = first_cell;
  for (; group_cell + groups < last_cell; group_cell += SWEEP_CELLS * groups) {
    sweep_group_cells.template operator()<SWEEP_CELLS, SWEEP_VECTORS>(group_cell);
  }
  if (group_cell < last_cell) {
    sweep_group_cells.template operator()<1, SWEEP_CELLS * SWEEP_VECTORS>(group_cell);
  }
}

}  // namespace pal_fast::cuda

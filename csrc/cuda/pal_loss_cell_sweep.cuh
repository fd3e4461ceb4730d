// channels_last layers: the sum of the attribution over channels, at every cell of a sample, by one of the sample's
// blocks.
#pragma once

#include "layer.cuh"
#include "pal_loss_plan.h"

namespace pal_fast::cuda {

// A CellPlan, as kernels take it.
struct CellSweep {
  int lanes, cells_per_split, splits;
};

// Vectors of each of SWEEP_CELLS cells that a thread has in flight of a channels_last tensor.
inline constexpr int SWEEP_VECTORS = 2;

// Has L2 fetch the vectors that a thread loads first, while it finds out what else it must know.
template <typename S>
__device__ __forceinline__ void prefetch_cells(const Layer<S>& layer, int64_t begin, int lanes, int first_cell,
                                               int last_cell) {
  const int lane = static_cast<int>(threadIdx.x) % lanes, group = static_cast<int>(threadIdx.x) / lanes;
  const int groups = static_cast<int>(blockDim.x) / lanes;
  const int at_once = first_cell + groups < last_cell ? SWEEP_CELLS : 1;
#pragma unroll
  for (int u = 0; u < SWEEP_CELLS * SWEEP_VECTORS; ++u) {
    const int cell = first_cell + u % at_once * groups + group;
    const int channel = (lane + u / at_once * lanes) * VECTOR<S>;
    if (cell < last_cell && channel < layer.count) {
      layer.prefetch_at(begin + static_cast<int64_t>(cell) * layer.channels + channel);
    }
  }
}

// map[cell], the sum of a - pivot over channels, for the cells [first_cell, last_cell) of the sample
// that starts at element `begin`.
template <bool All, typename S, typename T>
__device__ __forceinline__ void sweep_cells(const Layer<S>& layer, int64_t begin, int lanes, int first_cell,
                                            int last_cell, T pivot, Pointer<T> map, Squares& squares) {
  constexpr int V = VECTOR<S>;
  const int lane = static_cast<int>(threadIdx.x) % lanes, group = static_cast<int>(threadIdx.x) / lanes;
  const int groups = static_cast<int>(blockDim.x) / lanes;
  // Squares of whole vectors are counted, so `All` takes those only.
  const bool reaches_on = !All && layer.aligned && layer.channels % V == 0;
  // CELLS of each group's cells, DEEP vectors of each at once.
  const auto sweep_round = [&]<int CELLS, int DEEP>(int round) {
    constexpr int U = CELLS * DEEP;
    // A cell's channels that take part begin at from; `lead` of them before the first whole vector, `whole` in vectors,
    // of which the last may reach on into other channels, of the same cell.
    int64_t from[CELLS];
    int lead[CELLS], whole[CELLS];
    T sum[CELLS] = {};
    int most = 0, least = layer.count;
#pragma unroll
    for (int c = 0; c < CELLS; ++c) {
      const int cell = round + c * groups + group;
      from[c] = begin + static_cast<int64_t>(cell) * layer.channels;
      const int count = cell < last_cell ? layer.count : 0;
      lead[c] = static_cast<int>(-from[c] & (V - 1));
      whole[c] = (count - lead[c]) / V * V;
      least = min(least, whole[c]);
      if (reaches_on) {
        whole[c] = (count + V - 1) / V * V;
      } else if (!layer.aligned || whole[c] <= 0) {
        lead[c] = count;
        whole[c] = least = 0;
      }
      most = max(most, whole[c]);
    }
    const auto batch = [&]<bool Guarded>(int first) {
      int64_t at[U];
      bool there[U];
      T a[U][V];
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const int c = u % CELLS, offset = first + u / CELLS * lanes * V;
        at[u] = from[c] + lead[c] + offset;
        there[u] = offset < whole[c];
      }
      load_attribution<Guarded>(layer, at, there, a, pivot);
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const int left = layer.count - lead[u % CELLS] - first - u / CELLS * lanes * V;
#pragma unroll
        for (int e = 0; e < V; ++e) {
          sum[u % CELLS] += All || !Guarded || e < left ? a[u][e] : T(0);
        }
      }
      if constexpr (All) {
        squares.add<Guarded>(a, there);
      }
    };
    int i = lane * V;
    for (; i + (DEEP - 1) * lanes * V < least; i += DEEP * lanes * V) {
      batch.template operator()<false>(i);
    }
    for (; i < most; i += DEEP * lanes * V) {
      batch.template operator()<true>(i);
    }
#pragma unroll
    for (int c = 0; c < CELLS; ++c) {
      const int cell = round + c * groups + group;
      // Before the first whole vector and behind the last one.
      const int ends = (cell < last_cell ? layer.count : 0) - whole[c];  // below 0 if the last one reaches on
      for (int i = lane; i < ends; i += lanes) {
        const T a = layer.attribution(from[c] + (i < lead[c] ? i : i + whole[c])) - pivot;
        sum[c] += a;
        if constexpr (All) {
          squares.add(static_cast<double>(a));
        }
      }
      sum[c] = reduce_lanes(sum[c], lanes, Sum());
      if (lane == 0 && cell < last_cell) {
        map[cell] = sum[c];
      }
    }
  };
  // All threads run the same rounds, because lanes of a warp exchange their sums.
  int round = first_cell;
  for (; round + groups < last_cell; round += SWEEP_CELLS * groups) {
    sweep_round.template operator()<SWEEP_CELLS, SWEEP_VECTORS>(round);
  }
  if (round < last_cell) {
    sweep_round.template operator()<1, SWEEP_CELLS * SWEEP_VECTORS>(round);
  }
}

}  // namespace pal_fast::cuda

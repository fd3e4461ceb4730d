// The sum of the attribution over channels, at every cell of a sample, by one of the sample's blocks.
#pragma once

#include "layer.cuh"
#include "pal_loss_plan.h"

namespace pal_fast::cuda {

// A RowPlan, as kernels take it.
struct RowSweep {
  int64_t period, rows, rows_per_split;
  int vectors, columns, rows_at_once, tiles, splits;
};

[[nodiscard]] inline RowSweep row_sweep(const RowPlan& plan) {
  return {plan.period,
          plan.rows,
          plan.rows_per_split,
          static_cast<int>(plan.vectors),
          static_cast<int>(plan.columns),
          static_cast<int>(plan.rows_at_once),
          static_cast<int>(plan.tiles),
          static_cast<int>(plan.splits)};
}

struct CellSweep {
  int lanes, cells_per_split, splits;
};

// What of a row sweep is this thread's: vectors first, first + step, ... below stop, by their first element. The
// sample's elements are [begin, end).
struct ThreadRows {
  int64_t first, step, stop;
  bool active;

  __device__ __forceinline__ ThreadRows(const RowSweep& sweep, int64_t begin, int vector, int split, int tile) {
    const int thread = threadIdx.x;
    const int column = tile * sweep.columns + thread % sweep.columns, row = thread / sweep.columns;
    active = row < sweep.rows_at_once && column < sweep.vectors;
    const int64_t origin = begin - begin % vector + static_cast<int64_t>(column) * vector;
    const int64_t first_row = split * sweep.rows_per_split;
    const int64_t last_row = min(first_row + sweep.rows_per_split, sweep.rows);
    first = origin + (first_row + row) * sweep.period;
    step = sweep.rows_at_once * sweep.period;
    stop = active ? origin + last_row * sweep.period : first;
  }
};

// Vectors that a thread has in flight of each tensor.
inline constexpr int SWEEP_DEPTH = 4;

// Has L2 fetch the vectors that a thread loads first, while it finds out what else it must know.
template <typename S>
__device__ __forceinline__ void prefetch_rows(const Layer<S>& layer, const ThreadRows& rows, int64_t begin,
                                              int64_t end) {
#pragma unroll
  for (int u = 0; u < SWEEP_DEPTH; ++u) {
    const int64_t at = rows.first + u * rows.step;
    if (at >= begin && at < rows.stop && at < end) {
      layer.prefetch_at(at);
    }
  }
}

// NCHW. sum[e]: over the thread's vectors, their element e, less pivot. Elements [begin, end) are the n channels of the
// sample.
template <bool All, typename S, typename T>
__device__ __forceinline__ void sweep_rows(const Layer<S>& layer, const ThreadRows& rows, int64_t begin, int64_t end,
                                           T pivot, T (&sum)[VECTOR<S>], Squares& squares) {
  constexpr int V = VECTOR<S>, U = SWEEP_DEPTH;
  // The elements of a vector that reaches out of the run, or that cannot be loaded at once.
  const auto by_elements = [&](int64_t at) {
#pragma unroll
    for (int e = 0; e < V; ++e) {
      if (at + e >= begin && at + e < end) {
        const T a = layer.attribution(at + e) - pivot;
        sum[e] += a;
        if constexpr (All) {
          squares.add(static_cast<double>(a));
        }
      }
    }
  };
  // Whole vectors begin at `begin` or behind it, and below `whole`.
  int64_t i = rows.first < begin ? rows.first + rows.step : rows.first;
  const int64_t whole = layer.aligned ? min(rows.stop, end - V + 1) : i;
  const auto batch = [&]<bool Guarded>() {
    int64_t at[U];
    bool there[U];
    T a[U][V];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      at[u] = i + u * rows.step;
      there[u] = at[u] < whole;
    }
    load_attribution<Guarded>(layer, at, there, a, pivot);
#pragma unroll
    for (int e = 0; e < V; ++e) {
#pragma unroll
      for (int u = 0; u < U; ++u) {
        sum[e] += a[u][e];
      }
    }
    if constexpr (All) {
      squares.add<Guarded>(a, there);
    }
  };
  for (; i + (U - 1) * rows.step < whole; i += U * rows.step) {
    batch.template operator()<false>();
  }
  if (i < whole) {
    batch.template operator()<true>();
    while (i < whole) {
      i += rows.step;
    }
  }
  const int64_t rest = i;
  // The one before and the one behind them; all of them if they are not aligned.
  for (int64_t at = rows.first < begin ? rows.first : rest; at < rows.stop && at < end;) {
    by_elements(at);
    at = at < begin ? rest : at + rows.step;
  }
}

// Sums of values [total] over the indices that agree modulo `cells`, each handed to one thread: to(index, sum). The
// order is fixed. scratch: MOST_THREADS elements.
template <typename T, typename To>
__device__ __forceinline__ void fold(Pointer<const T> values, int64_t total, int cells, Pointer<T> scratch,
                                     const To& to) {
  const int threads = blockDim.x, thread = threadIdx.x;
  const int parts = cells < threads ? threads / cells : 1;
  // Of `Starts` indices, `threads` apart, each the sum over those behind it in steps; loads are in flight together.
  const auto sums_from = [&]<int Starts, int Steps>(int start, int64_t step, T(&sum)[Starts]) {
    for (int64_t first = 0; first < total; first += Steps * step) {
      T value[Steps][Starts];
#pragma unroll
      for (int s = 0; s < Steps; ++s) {
#pragma unroll
        for (int c = 0; c < Starts; ++c) {
          const int index = start + c * threads;
          const int64_t at = first + s * step + index;
          value[s][c] = index < step && at < total ? values[at] : T(0);
        }
      }
#pragma unroll
      for (int s = 0; s < Steps; ++s) {
#pragma unroll
        for (int c = 0; c < Starts; ++c) {
          sum[c] += value[s][c];
        }
      }
    }
  };
  const auto maps = [&]<int Starts, int Steps>() {
    for (int first = thread; first < cells; first += Starts * threads) {
      T sum[Starts] = {};
      sums_from.template operator()<Starts, Steps>(first, cells, sum);
#pragma unroll
      for (int c = 0; c < Starts; ++c) {
        if (first + c * threads < cells) {
          to(first + c * threads, sum[c]);
        }
      }
    }
  };
  if (parts == 1) {
    if (cells <= threads) {
      maps.template operator()<1, 16>();
    } else {
      maps.template operator()<4, 4>();
    }
    return;
  }
  if (thread < parts * cells) {
    T sum[1] = {};
    sums_from.template operator()<1, 8>(thread, parts * cells, sum);
    scratch[thread] = sum[0];
  }
  __syncthreads();
  if (thread < cells) {
    T sum = 0;
    for (int part = 0; part < parts; ++part) {
      sum += scratch[part * cells + thread];
    }
    to(thread, sum);
  }
}

// Vectors of each of SWEEP_CELLS cells that a thread has in flight of a channels_last tensor.
inline constexpr int SWEEP_VECTORS = 2;

// As prefetch_rows.
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

// channels_last: map[cell], the sum of a - pivot over channels, for the cells [first_cell, last_cell) of the sample
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

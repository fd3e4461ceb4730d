// Contiguous layers: the sum of the attribution over channels, at every cell of a sample, by one of the sample's
// blocks.
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

// sum[e]: over the thread's vectors, their element e, less pivot. Elements [begin, end) are the n channels of the
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

}  // namespace pal_fast::cuda

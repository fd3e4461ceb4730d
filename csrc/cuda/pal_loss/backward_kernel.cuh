// Both gradients of the loss in one launch, an elementwise kernel over the layer:
//   d = grad_loss * factor * dP/da,  df = d |g|,  dg = d f sign(g), or the like for other attributions.
// A thread has a column of a sample's rows (row_sweep.cuh). It
//   1. prefetches its first vectors, and loads the sample's and the column's coefficients into registers;
//   2. takes its whole vectors, BACKWARD_UNROLL of each tensor in flight. Channels that take no part, and samples whose
//      factor is 0, do not enter the gradients, whatever they hold (NaN included): theirs are zeros;
//   3. takes the rest element by element.
// Samples and a thread's vectors go from the last to the first: what the forward read last may still be in L2.
#pragma once

#include "cuda/pal_loss/derivative.cuh"

namespace pal_fast::cuda {

// Vectors of each tensor that a thread has in flight.
inline constexpr int BACKWARD_UNROLL = 2;

template <typename S, bool ChannelsLast, Grouping G>
__global__ void __launch_bounds__(MAX_BLOCK_THREADS, resident_backward_blocks(G, ChannelsLast, sizeof(S)))
    loss_backward_kernel(const Layer<S> layer, const LossDerivative<S> tensors, const RowSweep sweep) {
  using T = typename ComputeType<S>::type;
  constexpr int V = VECTOR_SIZE<S>, U = BACKWARD_UNROLL;
  constexpr bool EACH = G == Grouping::each;
  const int blocks = sweep.splits * sweep.tiles;
  const unsigned block = gridDim.x - 1 - blockIdx.x;
  const int64_t sample = block / blocks, begin = sample * layer.sample_elements(),
                end = begin + layer.sample_elements();
  const ThreadRows rows(sweep, begin, end, V, block % blocks);
  if (!rows.active) {
    return;
  }

  // 1. Whole vectors start at low, low + stride, ..., high (none: high < low). If the outer index (channels; cells for
  // channels_last) may increase more than once within a vector, there are none.
  const int inner = ChannelsLast ? layer.channels : layer.cells;
  const bool vectorised = layer.aligned && (inner >= V || (!ChannelsLast && !EACH));
  const bool starts_before = rows.first < begin;
  const int64_t low = starts_before ? rows.first + rows.stride : rows.first;
  const int64_t vector_end = vectorised ? end - V + 1 : low;
  int steps = sweep.steps - (starts_before ? 1 : 0);
  int64_t high = low + (steps - 1) * rows.stride;
  for (; steps > 0 && high >= vector_end; --steps) {
    high -= rows.stride;
  }

  // A column has the same inner indices (cells; channels for channels_last) in every row, so what depends on them is
  // loaded once: the plane, or the channels' coefficients. The outer index changes by a constant a step. It increases
  // by 1 within a vector, at element `wrap`, if inner runs are not whole vectors.
  const int outer_step = static_cast<int>(rows.stride / inner);
  const int first_inner = static_cast<int>((low - begin) % inner);
  int outer = static_cast<int>((low - begin) / inner) + (steps - 1) * outer_step;  // of the vector at `high`
  const int wrap = inner - first_inner;  // elements from this one on have the next outer index
  unsigned active_mask = 0;  // channels_last: which of the column's elements belong to channels that take part
  if constexpr (ChannelsLast) {
    int channel = first_inner;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      active_mask |= (channel < layer.count ? 1u : 0u) << e;
      channel = channel + 1 == inner ? 0 : channel + 1;
    }
  }
  // Vectors from here on are not read and get zeros: NCHW, behind the channels that take part; channels_last, all or
  // none of the column.
  int64_t live_end =
      ChannelsLast ? (active_mask == 0 ? begin : end) : begin + static_cast<int64_t>(layer.count) * layer.cells;
#pragma unroll
  for (int u = 0; u < U; ++u) {
    const int64_t first = high - u * rows.stride;
    if (first >= low && first + V <= live_end) {
      layer.prefetch(first);
    }
  }

  const SampleDerivative<S, ChannelsLast, G> derivative(layer, tensors, sample);
  if (!derivative.live) {
    live_end = begin;
  }
  T plane[ChannelsLast ? 1 : V] = {};
  Coefficients<T> column_coefficients[EACH && ChannelsLast ? V : 1];
  if (high >= low) {
    if constexpr (!ChannelsLast) {
      derivative.load_plane(first_inner, plane);
    } else if constexpr (EACH) {
      derivative.load_channels(first_inner, column_coefficients);
    }
  }

  // 2. Whole vectors.
  // Mixed: within a vector the outer index may increment and, for channels_last, some channels may take no part.
  const auto sweep_vectors = [&]<bool Mixed>() {
    for (int64_t i = high; i >= low; i -= U * rows.stride, outer -= U * outer_step) {
      // All loads are issued before the first store.
      Vector<S> f[U], g[U];
      // channels_last: the plane at the vector's first cell and at the next.
      [[maybe_unused]] T value[U] = {}, next_value[U] = {};
      Coefficients<T> group[U], next_group[U];  // NCHW: the coefficients of its first channel and of the next
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const int64_t first = i - u * rows.stride;
        f[u] = g[u] = Vector<S>::broadcast(T(1));
        group[u] = next_group[u] = derivative.sample_coefficients;
        if (first >= low && first + V <= live_end) {
          // The outer index of the vector's first element: a channel, or a cell for channels_last.
          [[maybe_unused]] const int index = outer - u * outer_step;
          if constexpr (ChannelsLast) {
            value[u] = derivative.plane_at(index);
            next_value[u] = Mixed && wrap < V ? derivative.plane_at(index + 1) : value[u];
          } else if constexpr (EACH) {
            group[u] = derivative.channel_coefficients(index);
            next_group[u] = Mixed && wrap < V ? derivative.channel_coefficients(index + 1) : group[u];
          }
          if (layer.activation) {
            f[u] = load_vector<S, V, Cache::streaming>(layer.activation + first);
          }
          if (layer.gradient) {
            g[u] = load_vector<S, V, Cache::streaming>(layer.gradient + first);
          }
        }
      }
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const int64_t first = i - u * rows.stride;
        if (first < low) {
          continue;
        }
        T df[V], dg[V];
        if (first + V <= live_end) {
          f[u].widen(df);
          g[u].widen(dg);
          if constexpr (ChannelsLast) {
#pragma unroll
            for (int e = 0; e < V; ++e) {
              derivative.gradients(df[e], dg[e], Mixed && e >= wrap ? next_value[u] : value[u],
                                   EACH ? column_coefficients[EACH ? e : 0] : derivative.sample_coefficients, df[e],
                                   dg[e]);
              if (Mixed && (active_mask >> e & 1u) == 0) {
                df[e] = dg[e] = 0;
              }
            }
          } else {
#pragma unroll
            for (int e = 0; e < V; ++e) {
              derivative.gradients(df[e], dg[e], plane[e], select(Mixed && e >= wrap, next_group[u], group[u]), df[e],
                                   dg[e]);
            }
          }
        } else if (first >= live_end) {
#pragma unroll
          for (int e = 0; e < V; ++e) {
            df[e] = dg[e] = 0;
          }
        } else {
          continue;  // in step 3
        }
        if (tensors.d_activation) {
          store_vector<S>(tensors.d_activation + first, df);
        }
        if (tensors.d_gradient) {
          store_vector<S>(tensors.d_gradient + first, dg);
        }
      }
    }
  };
  if (((ChannelsLast || EACH) && inner % V != 0) || (ChannelsLast && layer.count % V != 0)) {
    sweep_vectors.template operator()<true>();
  } else {
    sweep_vectors.template operator()<false>();
  }

  // 3. The rest: the vectors across the sample's begin and end, and the one in which the last channel that takes part
  // ends.
  const bool ends_within = !ChannelsLast && layer.count < layer.channels && live_end % V != 0;
  if (starts_before || ends_within || high + rows.stride < end) {
    for (int64_t first = rows.first; first < end; first += rows.stride) {
      if (first >= low && first <= high && (first + V <= live_end || first >= live_end)) {
        continue;
      }
#pragma unroll 1
      for (int e = 0; e < V; ++e) {
        if (first + e >= begin && first + e < end) {
          derivative.write_element(first + e);
        }
      }
    }
  }
}

}  // namespace pal_fast::cuda

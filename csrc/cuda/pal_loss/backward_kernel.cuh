// Both gradients of the loss in one launch, an elementwise kernel over the layer:
//   d = grad_loss * factor * dP/da,  df = d |g|,  dg = d f sign(g), or the like for other attributions.
// A sample is a matrix of rows of 16-byte vectors (RowPlan). A thread stays in a column, loads what depends on the
// inner index (plane or channel coefficients) once into registers, and strides over the rows with BACKWARD_UNROLL
// vectors of each tensor in flight. Channels that take no part, and samples whose factor is 0, are not read: their
// gradients are zeros, whatever they hold (NaN included).
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
  // In reverse: what the forward read last may still be in L2.
  const unsigned block = gridDim.x - 1 - blockIdx.x;
  const int part = block % blocks;
  const SampleDerivative<S, ChannelsLast, G> derivative(layer, tensors, block / blocks);
  const int64_t begin = derivative.begin, end = begin + layer.sample_elements();
  const ThreadRows rows(sweep, begin, V, part / sweep.tiles, part % sweep.tiles);
  if (!rows.active) {
    return;
  }

  // A column has the same inner indices (cells; channels for channels_last) in every row, so what depends on them is
  // loaded once: the plane, or the channels' coefficients. The outer index (channels; cells) advances by a constant a
  // row. It increments within a vector, at element `wrap`, if inner runs are not whole vectors.
  const int inner = ChannelsLast ? layer.channels : layer.cells;
  const int outer_step = static_cast<int>(rows.stride / inner);
  int64_t i = rows.first < begin ? rows.first + rows.stride : rows.first;
  int outer = static_cast<int>((i - begin) / inner);
  const int first_inner = static_cast<int>((i - begin) % inner);
  const int wrap = inner - first_inner;  // elements from this one on have the next outer index
  T plane[ChannelsLast ? 1 : V] = {};
  Coefficients<T> column_coefficients[EACH && ChannelsLast ? V : 1];
  unsigned active_mask = 0;  // channels_last: which of the column's elements belong to channels that take part
  if (i < rows.stop && i < end) {
    int index = first_inner;
    if constexpr (ChannelsLast) {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        active_mask |= (index < layer.count ? 1u : 0u) << e;
        index = index + 1 == inner ? 0 : index + 1;
      }
      if constexpr (EACH) {
        derivative.load_channels(first_inner, column_coefficients);
      }
    } else {
      derivative.load_plane(index, plane);
    }
  }

  // Vectors from here on are not read and get zeros: NCHW, behind the channels that take part; channels_last, all or
  // none of the column.
  const int64_t live_end = !derivative.live ? begin
                           : ChannelsLast   ? (active_mask == 0 ? begin : end)
                                            : begin + static_cast<int64_t>(layer.count) * layer.cells;
  // Whole vectors start below vector_end. If the outer index may increment more than once in a vector, elements are
  // processed one by one.
  const bool vectorised = layer.aligned && (inner >= V || (!ChannelsLast && !EACH));
  const int64_t vector_end = vectorised ? min(rows.stop, end - V + 1) : i;
  int64_t boundary = end;  // the vector in which the last channel that takes part ends
  int64_t tail = i;

  // Mixed: within a vector the outer index may increment and, for channels_last, some channels may take no part.
  const auto sweep_vectors = [&]<bool Mixed>() {
    for (; i < vector_end; i += U * rows.stride) {
      // All loads are issued before the first store.
      Vector<S> f[U], g[U];
      // channels_last: the plane at the vector's first cell and at the next.
      [[maybe_unused]] T value[U] = {}, next_value[U] = {};
      Coefficients<T> group[U], next_group[U];  // NCHW: the coefficients of its first channel and of the next
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const int64_t first = i + u * rows.stride;
        f[u] = g[u] = Vector<S>::broadcast(T(1));
        group[u] = next_group[u] = derivative.sample_coefficients;
        if (first < vector_end && first + V <= live_end) {
          // The outer index of the vector's first element: a channel, or a cell for channels_last.
          [[maybe_unused]] const int index = outer + u * outer_step;
          if constexpr (ChannelsLast) {
            value[u] = derivative.plane_at(index);
            next_value[u] = Mixed && wrap < V ? derivative.plane_at(index + 1) : value[u];
          } else if constexpr (EACH) {
            group[u] = derivative.channel_coefficients(index);
            next_group[u] = Mixed && wrap < V ? derivative.channel_coefficients(index + 1) : group[u];
          }
          if (layer.activation) {
            f[u] = load_vector_streaming<S>(layer.activation + first);
          }
          if (layer.gradient) {
            g[u] = load_vector_streaming<S>(layer.gradient + first);
          }
        }
      }
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const int64_t first = i + u * rows.stride;
        if (first >= vector_end) {
          continue;
        }
        tail = first + rows.stride;
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
          boundary = first;
          continue;
        }
        if (tensors.d_activation) {
          store_vector<S>(tensors.d_activation + first, df);
        }
        if (tensors.d_gradient) {
          store_vector<S>(tensors.d_gradient + first, dg);
        }
      }
      outer += U * outer_step;
    }
  };
  if (((ChannelsLast || EACH) && inner % V != 0) || (ChannelsLast && layer.count % V != 0)) {
    sweep_vectors.template operator()<true>();
  } else {
    sweep_vectors.template operator()<false>();
  }

  // Element by element: the vector across the sample's begin, the boundary, and the vectors from the tail on.
  for (int64_t first = rows.first < begin ? rows.first
                       : boundary < end   ? boundary
                                          : tail;
       first < rows.stop && first < end;) {
#pragma unroll 1
    for (int e = 0; e < V; ++e) {
      if (first + e >= begin && first + e < end) {
        derivative.write_element(first + e);
      }
    }
    first = first < begin ? (boundary < end ? boundary : tail) : first == boundary ? tail : first + rows.stride;
  }
}

}  // namespace pal_fast::cuda

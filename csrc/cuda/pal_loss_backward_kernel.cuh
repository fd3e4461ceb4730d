// Both gradients of the loss in one launch, from the derivative of each sample's score:
//   d = grad_loss * factor * dP/da,  df = d |g|,  dg = d f sign(g), or what the attribution asks for.
// Channels that take no part, and samples whose factor is 0, are not read: their gradients are zeros, whatever they
// hold.
#pragma once

#include "pal_loss_derivative.cuh"

namespace pal_fast::cuda {

// Vectors that a thread has in flight of each tensor.
inline constexpr int BACKWARD_DEPTH = 2;

template <typename S, bool ChannelsLast, Grouping G>
__global__ void __launch_bounds__(MOST_THREADS, resident_backward_blocks(G, ChannelsLast, sizeof(S)))
    loss_backward_kernel(const Layer<S> layer, const LossDerivative<S> of, const RowSweep sweep) {
  using T = typename Computing<S>::type;
  constexpr int V = VECTOR<S>, U = BACKWARD_DEPTH;
  constexpr bool EACH = G == Grouping::each;
  const int blocks = sweep.splits * sweep.tiles;
  // From the end: what the forward has read last may be left in L2.
  const unsigned block = gridDim.x - 1 - blockIdx.x;
  const int part = block % blocks;
  const SampleDerivative<S, ChannelsLast, G> derivative(layer, of, block / blocks);
  const int64_t begin = derivative.begin, end = begin + layer.sample_elements();
  const ThreadRows rows(sweep, begin, V, part / sweep.tiles, part % sweep.tiles);
  if (!rows.active) {
    return;
  }

  // A column's inner indices (cells; channels for channels_last) are the same in every row, so what depends on them is
  // loaded once: the plane, or the channels' coefficients. The outer index advances by whole rows. It changes within a
  // vector where a whole number of vectors does not fill the inner run.
  const int inner = ChannelsLast ? layer.channels : layer.cells;
  const int outer_step = static_cast<int>(rows.step / inner);
  int64_t i = rows.first < begin ? rows.first + rows.step : rows.first;
  int outer = static_cast<int>((i - begin) / inner);
  const int first_inner = static_cast<int>((i - begin) % inner);
  const int change = inner - first_inner;  // elements from this one on have the next outer index
  T plane[ChannelsLast ? 1 : V] = {};
  Coefficients<T> of_column[EACH && ChannelsLast ? V : 1];
  unsigned taking_part = 0;  // channels_last: a bit for each of the column's elements
  if (i < rows.stop && i < end) {
    int index = first_inner;
    if constexpr (ChannelsLast) {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        taking_part |= (index < layer.count ? 1u : 0u) << e;
        index = index + 1 == inner ? 0 : index + 1;
      }
      if constexpr (EACH) {
        derivative.channels_from(first_inner, of_column);
      }
    } else {
      derivative.plane_from(index, plane);
    }
  }

  // Elements of NCHW that take part end here; of channels_last, columns take part or not.
  const int64_t live_end = !derivative.live ? begin
                           : ChannelsLast   ? (taking_part == 0 ? begin : end)
                                            : begin + static_cast<int64_t>(layer.count) * layer.cells;
  // Whole vectors begin below `whole`. A column in which the outer index changes more than once goes element by
  // element.
  const bool by_vectors = layer.aligned && (inner >= V || (!ChannelsLast && !EACH));
  const int64_t whole = by_vectors ? min(rows.stop, end - V + 1) : i;
  int64_t boundary = end;  // the vector that the last channel taking part ends in
  int64_t rest = i;

  // `Parts`: within a vector the outer index may change and, of channels_last, some channels take no part.
  const auto sweep_vectors = [&]<bool Parts>() {
    for (; i < whole; i += U * rows.step) {
      // All loads go out before the first store.
      Vector<S> f[U], g[U];
      T value[U] = {}, next_value[U] = {};      // channels_last: the plane at the vector's first cell and the next
      Coefficients<T> group[U], next_group[U];  // NCHW: the same for channels
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const int64_t at = i + u * rows.step;
        f[u] = g[u] = Vector<S>::filled(T(1));
        group[u] = next_group[u] = derivative.whole;
        if (at < whole && at + V <= live_end) {
          // The outer index of the vector's first element: a channel, or a cell for channels_last.
          [[maybe_unused]] const int index = outer + u * outer_step;
          if constexpr (ChannelsLast) {
            value[u] = derivative.plane_at(index);
            next_value[u] = Parts && change < V ? derivative.plane_at(index + 1) : value[u];
          } else if constexpr (EACH) {
            group[u] = derivative.of_channel(index);
            next_group[u] = Parts && change < V ? derivative.of_channel(index + 1) : group[u];
          }
          if (layer.activation) {
            f[u] = load_vector_for_the_last_time<S>(layer.activation + at);
          }
          if (layer.gradient) {
            g[u] = load_vector_for_the_last_time<S>(layer.gradient + at);
          }
        }
      }
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const int64_t at = i + u * rows.step;
        if (at >= whole) {
          continue;
        }
        rest = at + rows.step;
        T df[V], dg[V];
        if (at + V <= live_end) {
          f[u].widen(df);
          g[u].widen(dg);
          if constexpr (ChannelsLast) {
#pragma unroll
            for (int e = 0; e < V; ++e) {
              derivative.gradients(df[e], dg[e], Parts && e >= change ? next_value[u] : value[u],
                                   EACH ? of_column[EACH ? e : 0] : derivative.whole, df[e], dg[e]);
              if (Parts && (taking_part >> e & 1u) == 0) {
                df[e] = dg[e] = 0;
              }
            }
          } else {
#pragma unroll
            for (int e = 0; e < V; ++e) {
              derivative.gradients(df[e], dg[e], plane[e], choose(Parts && e >= change, next_group[u], group[u]), df[e],
                                   dg[e]);
            }
          }
        } else if (at >= live_end) {
#pragma unroll
          for (int e = 0; e < V; ++e) {
            df[e] = dg[e] = 0;
          }
        } else {
          boundary = at;
          continue;
        }
        if (of.d_activation) {
          store_vector<S>(of.d_activation + at, df);
        }
        if (of.d_gradient) {
          store_vector<S>(of.d_gradient + at, dg);
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

  // Element by element: the vector that begins before the sample, the boundary, and what reaches out of the sample.
  for (int64_t at = rows.first < begin ? rows.first : boundary < end ? boundary : rest; at < rows.stop && at < end;) {
#pragma unroll 1
    for (int e = 0; e < V; ++e) {
      if (at + e >= begin && at + e < end) {
        derivative.write_element(at + e);
      }
    }
    at = at < begin ? (boundary < end ? boundary : rest) : at == boundary ? rest : at + rows.step;
  }
}

}  // namespace pal_fast::cuda

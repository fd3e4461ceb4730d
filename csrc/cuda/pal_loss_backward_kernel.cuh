// Both gradients of the loss in one launch, from the derivative of each sample's score:
//   d = grad_loss * factor * dP/da,  df = d |g|,  dg = d f sign(g), or what the attribution asks for.
// Channels that take no part, and samples whose factor is 0, are not read: their gradients are zeros, whatever they
// hold.
#pragma once

#include "pal_loss_sweep.cuh"

namespace pal_fast::cuda {

// As kernels take it.
template <typename S>
struct LossDerivative {
  using T = typename Computing<S>::type;

  Pointer<const T> grad_loss;  // [] or [B]
  int64_t grad_loss_stride;
  Pointer<const T> plane;         // [B, H, W]
  Pointer<const T> coefficients;  // [B, G, 3]
  Pointer<const T> factor;        // [B]
  Pointer<S> d_activation;        // [B, C, H, W], or null
  Pointer<S> d_gradient;          // [B, C, H, W], or null
};

// d = slope * (plane + curve * (a - mean)); slope * plane for Grouping::map, whose plane says it all.
template <typename T>
struct Coefficients {
  T slope, curve, mean;
};

template <typename T>
[[nodiscard]] __device__ __forceinline__ Coefficients<T> choose(bool first, const Coefficients<T>& a,
                                                                const Coefficients<T>& b) {
  return {first ? a.slope : b.slope, first ? a.curve : b.curve, first ? a.mean : b.mean};
}

// value * sign(g). A g that is NaN has made value NaN.
[[nodiscard]] __device__ __forceinline__ float times_sign(float value, float g) {
  const float signed_value = same_bits<float>(same_bits<unsigned>(value) ^ (same_bits<unsigned>(g) & 0x80000000u));
  return g == 0.0f ? 0.0f : signed_value;
}
[[nodiscard]] __device__ __forceinline__ double times_sign(double value, double g) {
  return g > 0.0 ? value : g < 0.0 ? -value : 0.0 * value;
}

// What all elements of a sample share, and the derivative at one of them.
template <typename S, bool ChannelsLast, Grouping G>
struct SampleDerivative {
  using T = typename Computing<S>::type;

  const Layer<S>& layer;
  const LossDerivative<S>& of;
  int64_t sample, begin;
  T grad;
  bool live;
  Coefficients<T> whole;  // of a sample, or of a map

  __device__ __forceinline__ SampleDerivative(const Layer<S>& given, const LossDerivative<S>& derivative, int64_t index)
      : layer(given), of(derivative), sample(index), begin(index * given.sample_elements()) {
    const T factor = of.factor[sample];
    live = factor != T(0);
    grad = live ? of.grad_loss[sample * of.grad_loss_stride] * factor : T(0);
    whole = G == Grouping::all ? coefficients(sample) : Coefficients<T>{grad, T(0), T(0)};
  }

  [[nodiscard]] __device__ __forceinline__ Coefficients<T> coefficients(int64_t group) const {
    return {grad * of.coefficients[3 * group], of.coefficients[3 * group + 1], of.coefficients[3 * group + 2]};
  }
  [[nodiscard]] __device__ __forceinline__ Coefficients<T> of_channel(int channel) const {
    return G == Grouping::each ? coefficients(sample * layer.count + channel) : whole;
  }
  // The plane; of a map, times grad.
  [[nodiscard]] __device__ __forceinline__ T plane_at(int64_t cell) const {
    const T value = of.plane[sample * layer.cells + cell];
    return G == Grouping::map ? grad * value : value;
  }

  // df and dg from f, g, the plane and the group's coefficients.
  __device__ __forceinline__ void gradients(T f, T g, T plane, const Coefficients<T>& group, T& df, T& dg) const {
    const T magnitude = layer.magnitude(g);
    const T d = G == Grouping::map ? plane : group.slope * (plane + group.curve * (magnitude * f - group.mean));
    df = d * magnitude;
    dg = layer.absolute ? times_sign(d * f, g) : d * f;
  }

  // One element of the sample, for those that do not come in whole vectors.
  __device__ __forceinline__ void write_element(int64_t at) const {
    const int64_t index = at - begin;
    const int64_t cell = ChannelsLast ? index / layer.channels : index % layer.cells;
    const int channel = static_cast<int>(ChannelsLast ? index % layer.channels : index / layer.cells);
    T df = 0, dg = 0;
    if (live && channel < layer.count) {
      gradients(layer.f(at), layer.g(at), plane_at(cell), of_channel(channel), df, dg);
    }
    if (of.d_activation) {
      of.d_activation[at] = narrowed<S>(df);
    }
    if (of.d_gradient) {
      of.d_gradient[at] = narrowed<S>(dg);
    }
  }
};

// Vectors that a thread has in flight of each tensor.
inline constexpr int BACKWARD_DEPTH = 2;

template <typename S, bool ChannelsLast, Grouping G>
__global__ void __launch_bounds__(MOST_THREADS, resident_backward_blocks(G, ChannelsLast, sizeof(S)))
    loss_backward_kernel(const Layer<S> layer, const LossDerivative<S> of, const RowSweep sweep) {
  using T = typename Computing<S>::type;
  constexpr int V = VECTOR<S>, U = BACKWARD_DEPTH;
  constexpr bool EACH = G == Grouping::each;
  const int blocks = sweep.splits * sweep.tiles;
  const int part = blockIdx.x % blocks;
  const SampleDerivative<S, ChannelsLast, G> derivative(layer, of, blockIdx.x / blocks);
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
  int taking_part = 0;  // channels_last: how many of the column's elements
  if (i < rows.stop && i < end) {
    int index = first_inner;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      if constexpr (ChannelsLast) {
        taking_part += index < layer.count ? 1 : 0;
        if constexpr (EACH) {
          of_column[e] = derivative.of_channel(min(index, layer.count - 1));
        }
      } else {
        plane[e] = derivative.plane_at(index);
      }
      index = index + 1 == inner ? 0 : index + 1;
    }
  }

  // Elements of NCHW that take part end here; of channels_last, columns take part or not.
  const int64_t live_end = !derivative.live ? begin
                           : ChannelsLast   ? (taking_part == 0 ? begin : end)
                                            : begin + static_cast<int64_t>(layer.count) * layer.cells;
  // Whole vectors begin below `whole`. A column of which some channels take part goes element by element, and so does
  // one in which the outer index changes more than once.
  const bool by_vectors = layer.aligned && (!ChannelsLast || taking_part == 0 || taking_part == V) &&
                          (inner >= V || (!ChannelsLast && !EACH));
  const int64_t whole = by_vectors ? min(rows.stop, end - V + 1) : i;
  int64_t boundary = end;  // the vector that the last channel taking part ends in
  int64_t rest = i;

  const auto sweep_vectors = [&]<bool Changes>() {
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
            next_value[u] = Changes && change < V ? derivative.plane_at(index + 1) : value[u];
          } else if constexpr (EACH) {
            group[u] = derivative.of_channel(index);
            next_group[u] = Changes && change < V ? derivative.of_channel(index + 1) : group[u];
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
              derivative.gradients(df[e], dg[e], Changes && e >= change ? next_value[u] : value[u],
                                   EACH ? of_column[EACH ? e : 0] : derivative.whole, df[e], dg[e]);
            }
          } else {
#pragma unroll
            for (int e = 0; e < V; ++e) {
              derivative.gradients(df[e], dg[e], plane[e], choose(Changes && e >= change, next_group[u], group[u]),
                                   df[e], dg[e]);
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
  if ((ChannelsLast || EACH) && inner % V != 0) {
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

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
  Grouping grouping;
};

// dP/da = slope * (plane + curve * (a - mean)); for Grouping::map plane says it all.
template <typename T>
struct Coefficients {
  T slope, curve, mean;
};

template <typename T>
[[nodiscard]] __device__ __forceinline__ T sign(T g) {
  return g > T(0) ? T(1) : g < T(0) ? T(-1) : g;  // 0 of 0, NaN of NaN
}

// What all elements of a sample share, and the derivative at one of them.
template <typename S, bool ChannelsLast>
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
    whole = of.grouping == Grouping::all ? coefficients(sample) : Coefficients<T>{grad, T(0), T(0)};
  }

  [[nodiscard]] __device__ __forceinline__ Coefficients<T> coefficients(int64_t group) const {
    return {grad * of.coefficients[3 * group], of.coefficients[3 * group + 1], of.coefficients[3 * group + 2]};
  }
  [[nodiscard]] __device__ __forceinline__ Coefficients<T> of_channel(int channel) const {
    return coefficients(sample * layer.count + channel);
  }
  [[nodiscard]] __device__ __forceinline__ T plane_at(int64_t cell) const {
    return of.plane[sample * layer.cells + cell];
  }

  // df and dg from f, g, the plane and the group's coefficients.
  __device__ __forceinline__ void gradients(T f, T g, T plane, const Coefficients<T>& group, T& df, T& dg) const {
    const T magnitude = layer.magnitude(g);
    T d = plane;
    if (of.grouping != Grouping::map) {
      d += group.curve * (magnitude * f - group.mean);
    }
    d *= group.slope;
    df = d * magnitude;
    dg = d * f * (layer.absolute ? sign(g) : T(1));
  }

  // One element of the sample, for those that do not come in whole vectors.
  template <bool Each>
  __device__ __forceinline__ void write_element(int64_t at) const {
    const int64_t index = at - begin;
    const int64_t cell = ChannelsLast ? index / layer.channels : index % layer.cells;
    const int channel = static_cast<int>(ChannelsLast ? index % layer.channels : index / layer.cells);
    T df = 0, dg = 0;
    if (live && channel < layer.count) {
      gradients(layer.f(at), layer.g(at), plane_at(cell), Each ? of_channel(channel) : whole, df, dg);
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

// Eight channels' coefficients take the registers of a block.
template <typename S, bool ChannelsLast, bool Each>
inline constexpr int resident_backward_blocks = ChannelsLast && Each && VECTOR<S> == 8 ? 2 : resident_blocks<S>;

template <typename S, bool ChannelsLast, bool Each>
__global__ void __launch_bounds__(MOST_THREADS, resident_backward_blocks<S, ChannelsLast, Each>)
    loss_backward_kernel(const Layer<S> layer, const LossDerivative<S> of, const RowSweep sweep) {
  using T = typename Computing<S>::type;
  constexpr int V = VECTOR<S>, U = BACKWARD_DEPTH;
  const int blocks = sweep.splits * sweep.tiles;
  const int part = blockIdx.x % blocks;
  const SampleDerivative<S, ChannelsLast> derivative(layer, of, blockIdx.x / blocks);
  const int64_t begin = derivative.begin, end = begin + layer.sample_elements();
  const ThreadRows rows(sweep, begin, V, part / sweep.tiles, part % sweep.tiles);
  if (!rows.active) {
    return;
  }
  const auto by_elements = [&](int64_t at) {
#pragma unroll 1
    for (int e = 0; e < V; ++e) {
      if (at + e >= begin && at + e < end) {
        derivative.template write_element<Each>(at + e);
      }
    }
  };

  int64_t i = rows.first < begin ? rows.first + rows.step : rows.first;
  const int64_t whole = layer.aligned ? min(rows.stop, end - V + 1) : i;

  // A column's inner indices (cells; channels for channels_last) are the same in every row, so what depends on them is
  // loaded once: the plane, or which channels take part and their coefficients. What depends on the outer index
  // advances by whole rows.
  const int inner = ChannelsLast ? layer.channels : layer.cells;
  const int outer_step = static_cast<int>(rows.step / inner);
  int first_inner = 0, outer = 0;
  T plane[ChannelsLast ? 1 : V] = {};
  Coefficients<T> of_column[Each && ChannelsLast ? V : 1];
  int taking_part = 0;  // channels_last: a bit for each of the column's elements
  if (i < whole) {
    outer = static_cast<int>((i - begin) / inner);
    first_inner = static_cast<int>((i - begin) % inner);
    int index = first_inner;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      if constexpr (ChannelsLast) {
        const bool part_of = derivative.live && index < layer.count;
        taking_part |= part_of ? 1 << e : 0;
        if constexpr (Each) {
          of_column[e] = part_of ? derivative.of_channel(index) : Coefficients<T>{T(0), T(0), T(0)};
        }
      } else {
        plane[e] = derivative.plane_at(index);
      }
      index = index + 1 == inner ? 0 : index + 1;
    }
  }
  // NCHW: elements of the sample that take part end here.
  const int64_t live_end = derivative.live ? begin + static_cast<int64_t>(layer.count) * layer.cells : begin;
  const bool within_one = first_inner + V <= inner;  // the column's elements have one outer index

  int64_t rest = i;
  for (; i < whole; i += U * rows.step) {
    Vector<S> f[U], g[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int64_t at = i + u * rows.step;
      f[u] = g[u] = Vector<S>::filled(T(1));
      const bool reads = at < whole && (ChannelsLast ? taking_part != 0 : at < live_end);
      if (reads) {
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
      T of_f[V], of_g[V], df[V], dg[V];
      f[u].widen(of_f);
      g[u].widen(of_g);
      // The outer index of the vector's first element: a channel, or a cell for channels_last.
      int index = outer + u * outer_step, position = first_inner;
      Coefficients<T> group = derivative.whole;
      T value = 0;
      if constexpr (ChannelsLast) {
        value = derivative.plane_at(index);
      } else if constexpr (Each) {
        if (at < live_end) {
          group = derivative.of_channel(index);
        }
      }
#pragma unroll
      for (int e = 0; e < V; ++e) {
        bool part_of = false;
        if constexpr (ChannelsLast) {
          part_of = (taking_part >> e & 1) != 0;
          if constexpr (Each) {
            group = of_column[e];
          }
        } else {
          part_of = at + e < live_end;
          value = plane[e];
        }
        df[e] = dg[e] = 0;
        if (part_of) {
          derivative.gradients(of_f[e], of_g[e], value, group, df[e], dg[e]);
        }
        if constexpr (ChannelsLast || Each) {
          if (!within_one && e + 1 < V && ++position == inner) {
            position = 0;
            index += 1;
            if constexpr (ChannelsLast) {
              value = derivative.plane_at(index);
            } else if (at + e + 1 < live_end) {
              group = derivative.of_channel(index);
            }
          }
        }
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
  for (int64_t at = rows.first < begin ? rows.first : rest; at < rows.stop && at < end;) {
    by_elements(at);
    at = at < begin ? rest : at + rows.step;
  }
}

}  // namespace pal_fast::cuda

// The derivative of a sample's score at its elements, from what the forward has left of it.
#pragma once

#include "pal_loss_row_sweep.cuh"

namespace pal_fast::cuda {

// As kernels take it. What the forward has saved may come back anywhere: hooks on saved tensors may have moved it.
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
  // Of as many channels as a vector of the layer has, from `channel` on and over the last; what takes no part has those
  // of the last that does.
  __device__ __forceinline__ void channels_from(int channel, Coefficients<T> (&of_vector)[VECTOR<S>]) const {
    constexpr int V = VECTOR<S>, P = VECTOR<T>;
    if (layer.count % P == 0 && channel % P == 0 && channel + V <= layer.count && starts_a_vector(of.coefficients)) {
      T flat[3 * V];
#pragma unroll
      for (int e = 0; e < 3 * V; e += P) {
        T some[P];
        load_vector<T>(of.coefficients + (3 * (sample * layer.count + channel) + e)).widen(some);
#pragma unroll
        for (int j = 0; j < P; ++j) {
          flat[e + j] = some[j];
        }
      }
#pragma unroll
      for (int e = 0; e < V; ++e) {
        of_vector[e] = {grad * flat[3 * e], flat[3 * e + 1], flat[3 * e + 2]};
      }
      return;
    }
#pragma unroll
    for (int e = 0; e < V; ++e) {
      of_vector[e] = of_channel(min(channel, layer.count - 1));
      channel = channel + 1 == layer.channels ? 0 : channel + 1;
    }
  }

  // The plane; of a map, times grad.
  [[nodiscard]] __device__ __forceinline__ T plane_of(T value) const {
    return G == Grouping::map ? grad * value : value;
  }
  [[nodiscard]] __device__ __forceinline__ T plane_at(int64_t cell) const {
    return plane_of(of.plane[sample * layer.cells + cell]);
  }

  // As many cells as a vector of the layer has, from `cell` on and over the map's end.
  __device__ __forceinline__ void plane_from(int cell, T (&plane)[VECTOR<S>]) const {
    constexpr int P = VECTOR<T>;
    if (layer.cells % P == 0 && cell % P == 0 && starts_a_vector(of.plane)) {
#pragma unroll
      for (int e = 0; e < VECTOR<S>; e += P) {
        T some[P];
        load_vector<T>(of.plane + (sample * layer.cells + cell)).widen(some);
#pragma unroll
        for (int j = 0; j < P; ++j) {
          plane[e + j] = plane_of(some[j]);
        }
        cell = cell + P == layer.cells ? 0 : cell + P;
      }
      return;
    }
#pragma unroll
    for (int e = 0; e < VECTOR<S>; ++e) {
      plane[e] = plane_at(cell);
      cell = cell + 1 == layer.cells ? 0 : cell + 1;
    }
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

}  // namespace pal_fast::cuda

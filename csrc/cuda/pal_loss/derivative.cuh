// The derivative of a sample's score with respect to its elements, from the outputs of the forward.
#pragma once

#include "cuda/pal_loss/row_sweep.cuh"

namespace pal_fast::cuda {

// Kernel argument: inputs and outputs of the backward. The saved tensors need not be aligned to 16 bytes: hooks on
// saved tensors may have moved them.
template <typename S>
struct LossDerivative {
  using T = typename ComputeType<S>::type;

  Pointer<const T> grad_loss;  // [] or [B]
  int64_t grad_loss_stride;
  Pointer<const T> plane;         // [B, H, W]
  Pointer<const T> coefficients;  // [B, G, 3]
  Pointer<const T> factor;        // [B]
  Pointer<S> d_activation;        // [B, C, H, W], or null
  Pointer<S> d_gradient;          // [B, C, H, W], or null
};

// dP/da = slope * (plane + curve * (a - mean)). For Grouping::map the plane is dP/da itself.
template <typename T>
struct Coefficients {
  T slope, curve, mean;
};

template <typename T>
[[nodiscard]] __device__ __forceinline__ Coefficients<T> select(bool first, const Coefficients<T>& a,
                                                                const Coefficients<T>& b) {
  return {first ? a.slope : b.slope, first ? a.curve : b.curve, first ? a.mean : b.mean};
}

// value * sign(g), with sign(0) = 0. For NaN in g, value is NaN already.
[[nodiscard]] __device__ __forceinline__ float times_sign(float value, float g) {
  const float signed_value = bit_cast<float>(bit_cast<unsigned>(value) ^ (bit_cast<unsigned>(g) & 0x80000000u));
  return g == 0.0f ? 0.0f : signed_value;
}
[[nodiscard]] __device__ __forceinline__ double times_sign(double value, double g) {
  return g > 0.0 ? value : g < 0.0 ? -value : 0.0 * value;
}

// What the elements of a sample have in common, and the derivative at one of them.
template <typename S, bool ChannelsLast, Grouping G>
struct SampleDerivative {
  using T = typename ComputeType<S>::type;

  const Layer<S>& layer;
  const LossDerivative<S>& tensors;
  int64_t sample, begin;
  T grad;                               // grad_loss * factor
  bool live;                            // whether the sample has a gradient
  Coefficients<T> sample_coefficients;  // except for Grouping::each

  __device__ __forceinline__ SampleDerivative(const Layer<S>& given, const LossDerivative<S>& derivative, int64_t index)
      : layer(given), tensors(derivative), sample(index), begin(index * given.sample_elements()) {
    const T factor = tensors.factor[sample];
    live = factor != T(0);
    grad = live ? tensors.grad_loss[sample * tensors.grad_loss_stride] * factor : T(0);
    sample_coefficients = G == Grouping::all ? coefficients(sample) : Coefficients<T>{grad, T(0), T(0)};
  }

  [[nodiscard]] __device__ __forceinline__ Coefficients<T> coefficients(int64_t group) const {
    return {grad * tensors.coefficients[3 * group], tensors.coefficients[3 * group + 1],
            tensors.coefficients[3 * group + 2]};
  }
  [[nodiscard]] __device__ __forceinline__ Coefficients<T> channel_coefficients(int channel) const {
    return G == Grouping::each ? coefficients(sample * layer.count + channel) : sample_coefficients;
  }
  // Loads the coefficients of the channels of a vector that starts at `channel`, wrapping around after the last
  // channel. Channels that take no part get those of the last one that does.
  __device__ __forceinline__ void load_channels(int channel, Coefficients<T> (&vector)[VECTOR_SIZE<S>]) const {
    constexpr int V = VECTOR_SIZE<S>, P = VECTOR_SIZE<T>;
    if (layer.count % P == 0 && channel % P == 0 && channel + V <= layer.count &&
        is_vector_aligned(tensors.coefficients)) {
      T flat[3 * V];
#pragma unroll
      for (int e = 0; e < 3 * V; e += P) {
        T loaded[P];
        load_vector<T, P, Cache::l1>(tensors.coefficients + (3 * (sample * layer.count + channel) + e)).widen(loaded);
#pragma unroll
        for (int j = 0; j < P; ++j) {
          flat[e + j] = loaded[j];
        }
      }
#pragma unroll
      for (int e = 0; e < V; ++e) {
        vector[e] = {grad * flat[3 * e], flat[3 * e + 1], flat[3 * e + 2]};
      }
      return;
    }
#pragma unroll
    for (int e = 0; e < V; ++e) {
      vector[e] = channel_coefficients(min(channel, layer.count - 1));
      channel = channel + 1 == layer.channels ? 0 : channel + 1;
    }
  }

  // The plane, for Grouping::map multiplied by grad.
  [[nodiscard]] __device__ __forceinline__ T scaled_plane(T value) const {
    return G == Grouping::map ? grad * value : value;
  }
  [[nodiscard]] __device__ __forceinline__ T plane_at(int64_t cell) const {
    return scaled_plane(tensors.plane[sample * layer.cells + cell]);
  }

  // Loads the plane at the cells of a vector that starts at `cell`, wrapping around at the end of the map.
  __device__ __forceinline__ void load_plane(int cell, T (&plane)[VECTOR_SIZE<S>]) const {
    constexpr int P = VECTOR_SIZE<T>;
    if (layer.cells % P == 0 && cell % P == 0 && is_vector_aligned(tensors.plane)) {
#pragma unroll
      for (int e = 0; e < VECTOR_SIZE<S>; e += P) {
        T loaded[P];
        load_vector<T, P, Cache::l1>(tensors.plane + (sample * layer.cells + cell)).widen(loaded);
#pragma unroll
        for (int j = 0; j < P; ++j) {
          plane[e + j] = scaled_plane(loaded[j]);
        }
        cell = cell + P == layer.cells ? 0 : cell + P;
      }
      return;
    }
#pragma unroll
    for (int e = 0; e < VECTOR_SIZE<S>; ++e) {
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

  // Stores the gradients of element i alone, for those outside whole vectors.
  __device__ __forceinline__ void write_element(int64_t i) const {
    const int64_t index = i - begin;
    const int64_t cell = ChannelsLast ? index / layer.channels : index % layer.cells;
    const int channel = static_cast<int>(ChannelsLast ? index % layer.channels : index / layer.cells);
    T df = 0, dg = 0;
    if (live && channel < layer.count) {
      gradients(layer.f(i), layer.g(i), plane_at(cell), channel_coefficients(channel), df, dg);
    }
    if (tensors.d_activation) {
      tensors.d_activation[i] = narrowed<S>(df);
    }
    if (tensors.d_gradient) {
      tensors.d_gradient[i] = narrowed<S>(dg);
    }
  }
};

}  // namespace pal_fast::cuda

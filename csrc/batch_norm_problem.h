// Batch normalisation as plain numbers, and the per-channel coefficients of its derivatives: shared by CPU and CUDA.
// Does not include PyTorch, so that kernels can include it.
//
// Notation, per channel: M elements, z = (x - mean) * r with r = 1/sqrt(var + eps); G the gradient of the output,
// masked by the ReLU; v the gradient of the backward's dx, (u0, u1) that of its sums (s0, s1) = (sum G, sum G z).
#pragma once

#include <cstdint>

#include "options.h"

namespace pal_fast {

// input [B, C, L], L the product of the spatial dimensions; channels innermost for Layout::channels_last.
struct BatchNormProblem {
  int64_t batch = 0;     // B
  int64_t channels = 0;  // C
  int64_t length = 0;    // L
  Layout layout = Layout::contiguous;
  bool training = true;
  bool relu = false;

  [[nodiscard]] constexpr int64_t count() const { return batch * length; }  // M
  [[nodiscard]] constexpr bool channels_innermost() const { return layout == Layout::channels_last || length == 1; }
};

// Coefficients of the elementwise passes for one channel. With xc = x - mean:
//   forward          y = scale * xc + bias
//   backward         dx = of_grad * G + of_input * xc + constant
//   double backward  d_grad = mask * (gg.of_grad_grad * v + gg.of_input * xc + gg.constant)
//                    d_input = gx.of_grad * G + gx.of_grad_grad * v + gx.of_input * xc + gx.constant
template <typename T>
struct BatchNormAffine {
  T of_grad = 0;
  T of_grad_grad = 0;
  T of_input = 0;
  T constant = 0;
};

#ifdef __CUDACC__
#define PAL_FAST_HOST_DEVICE __host__ __device__
#else
#define PAL_FAST_HOST_DEVICE
#endif

// dx as a function of G and xc. Outside training the statistics are constants and M does not matter.
template <typename T>
[[nodiscard]] PAL_FAST_HOST_DEVICE inline BatchNormAffine<T> batch_norm_backward_coefficients(bool training,
                                                                                              T inverse_count, T weight,
                                                                                              T r, T s0, T s1) {
  const T scale = weight * r;
  if (!training) {
    return {scale, 0, 0, 0};
  }
  return {scale, 0, -scale * r * s1 * inverse_count, -scale * s0 * inverse_count};
}

template <typename T>
struct BatchNormDoubleBackward {
  BatchNormAffine<T> grad_grad;   // of d_grad
  BatchNormAffine<T> grad_input;  // of d_input
  T grad_weight = 0;
};

// The derivatives of <v, dx> + u0 * s0 + u1 * s1 with respect to the gradient, the input and the weight, where
// v0, v1, vg = sum v, sum v z, sum v G.
template <typename T>
[[nodiscard]] PAL_FAST_HOST_DEVICE inline BatchNormDoubleBackward<T> batch_norm_double_backward_coefficients(
    bool training, T inverse_count, T weight, T r, T s0, T s1, T u0, T u1, T v0, T v1, T vg) {
  const T scale = weight * r;
  BatchNormDoubleBackward<T> second;
  if (!training) {
    second.grad_grad = {0, scale, u1 * r, u0};
    second.grad_input = {r * u1, 0, 0, 0};
    second.grad_weight = r * vg;
    return second;
  }
  // <v, dx> = r * weight * inner, and its derivative with respect to z is e = p G + q v.
  const T inner = vg - (s0 * v0 + s1 * v1) * inverse_count;
  const T p = u1 - scale * v1 * inverse_count;
  const T q = -scale * s1 * inverse_count;
  const T mean_e = (p * s0 + q * v0) * inverse_count;
  const T mean_ez = (p * s1 + q * v1) * inverse_count;
  second.grad_grad = {0, scale, (u1 - scale * v1 * inverse_count) * r, u0 - scale * v0 * inverse_count};
  // Through z, and through the r in front of it: d(r)/dx = -r^2 z / M.
  second.grad_input = {r * p, r * q, -r * r * (mean_ez + r * weight * inner * inverse_count), -r * mean_e};
  second.grad_weight = r * inner;
  return second;
}

}  // namespace pal_fast

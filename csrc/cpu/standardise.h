// Moments in double of small arrays: the maps and heatmaps of one sample.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "options.h"

namespace pal_fast::cpu {

// sum_i term(i) by four interleaved accumulators, which hides the latency of additions; the order is fixed.
template <typename Term>
[[nodiscard]] double sum_over(int64_t n, const Term& term) {
  double sums[4] = {};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    sums[0] += term(i);
    sums[1] += term(i + 1);
    sums[2] += term(i + 2);
    sums[3] += term(i + 3);
  }
  for (; i < n; ++i) {
    sums[0] += term(i);
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

[[nodiscard]] inline bool is_flat(double mean, double variance) {
  return variance <= FLAT_TOLERANCE * FLAT_TOLERANCE * (variance + mean * mean);
}

// The moments that `centre` computed.
struct Centred {
  double unit;       // a power of two near the largest magnitude; the moments are in units of it
  double mean;       // of values / unit
  double deviation;  // population standard deviation of values / unit
  bool flat;
};

// In place: values [n] = values / unit - their mean. Dividing by a power of two is exact, and keeps squares from
// underflowing and overflowing at any scale of the values.
[[nodiscard]] inline Centred centre(double* values, int64_t n) {
  double largest = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    largest = std::max(largest, std::abs(values[i]));
  }
  Centred moments{1.0, 0.0, 0.0, false};
  if (largest > 0.0 && std::isfinite(largest)) {
    moments.unit = std::ldexp(1.0, std::clamp(std::ilogb(largest), -1022, 1022));
  }
  const auto count = static_cast<double>(n);
  const double inverse = 1.0 / moments.unit;
  moments.mean = sum_over(n, [&](int64_t i) { return values[i] *= inverse; }) / count;
  const double variance = sum_over(n,
                                   [&](int64_t i) {
                                     values[i] -= moments.mean;
                                     return values[i] * values[i];
                                   }) /
                          count;
  moments.deviation = std::sqrt(variance);
  moments.flat = is_flat(moments.mean, variance);
  return moments;
}

// Converts to T, clamped to 2^-24 of T's range, so that a loss scale (AMP) cannot make it infinite: infinity times a
// zero of the layer would be NaN.
template <typename T>
[[nodiscard]] T clamped(double value) {
  constexpr double largest = std::numeric_limits<T>::max() * 0x1p-24;
  return static_cast<T>(value > largest ? largest : value < -largest ? -largest : value);
}

}  // namespace pal_fast::cpu

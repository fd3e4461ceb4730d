// Moments in double of a few thousand numbers: maps and heatmaps of one sample.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "../options.h"

namespace pal_fast::cpu {

// sum_i of(i), as four interleaved sums: the order is fixed, and no addition waits for the one before.
template <typename Of>
[[nodiscard]] double sum_over(int64_t n, const Of& of) {
  double sums[4] = {};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    sums[0] += of(i);
    sums[1] += of(i + 1);
    sums[2] += of(i + 2);
    sums[3] += of(i + 3);
  }
  for (; i < n; ++i) {
    sums[0] += of(i);
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

[[nodiscard]] inline bool is_flat(double mean, double variance) {
  return variance <= FLAT_TOLERANCE * FLAT_TOLERANCE * (variance + mean * mean);
}

// What `centre` found.
struct Centred {
  double unit;       // a power of two near the largest magnitude; the moments are in units of it
  double mean;       // of values / unit
  double deviation;  // population standard deviation of values / unit
  bool flat;
};

// values [n] = values / unit - their mean. Dividing by a power of two is exact and keeps squares away from underflow
// and overflow, so that no scale is too small or too large.
[[nodiscard]] inline Centred centre(double* values, int64_t n) {
  double largest = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    largest = std::max(largest, std::abs(values[i]));
  }
  Centred found{1.0, 0.0, 0.0, false};
  if (largest > 0.0 && std::isfinite(largest)) {
    found.unit = std::ldexp(1.0, std::clamp(std::ilogb(largest), -1022, 1022));
  }
  const auto count = static_cast<double>(n);
  const double inverse = 1.0 / found.unit;
  found.mean = sum_over(n, [&](int64_t i) { return values[i] *= inverse; }) / count;
  const double variance = sum_over(n,
                                   [&](int64_t i) {
                                     values[i] -= found.mean;
                                     return values[i] * values[i];
                                   }) /
                          count;
  found.deviation = std::sqrt(variance);
  found.flat = is_flat(found.mean, variance);
  return found;
}

// As T, and so far within T's range that a loss scale does not make it infinite: infinity times a zero of the layer
// would be NaN.
template <typename T>
[[nodiscard]] T bounded(double value) {
  constexpr double largest = std::numeric_limits<T>::max() * 0x1p-24;
  return static_cast<T>(value > largest ? largest : value < -largest ? -largest : value);
}

}  // namespace pal_fast::cpu

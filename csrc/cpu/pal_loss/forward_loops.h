// The forward's passes over the layer: the sum over channels, or the moments of each channel. Products and sums are
// double, so that neither the scale of the attribution nor a large mean with a small spread costs accuracy.
// To be included by instances.h only, inside its namespace.

// Elements of a tile: it and its sums fit in L1.
constexpr int64_t TILE = 2048;

// map [N] = the sum over the channels of `range` of a [C, N] sample.
template <typename S, typename A>
void sum_channels(const StorageType<S>* f, const StorageType<S>* g, int64_t cells, Range channels, double* map) {
  // `side` short channels are summed side by side and their sums added at the end, so that the inner loop stays long
  // for 7 x 7 maps.
  const int64_t count = channels.last - channels.first;
  const int64_t side = cells < TILE ? minimum(TILE / cells, count) : 1;
  const int64_t width = side > 1 ? side * cells : minimum(cells, TILE);
  alignas(64) double sums[TILE + D];
  for (int64_t start = 0; start < cells; start += width) {  // more than one iteration only if side == 1
    const int64_t length = side > 1 ? width : minimum(width, cells - start);
    for (int64_t i = 0; i < length; ++i) {
      sums[i] = 0.0;
    }
    for (int64_t c = channels.first; c < channels.last; c += side) {
      const int64_t used = side > 1 ? minimum(side, channels.last - c) * cells : length;
      const int64_t offset = c * cells + start;
      int64_t i = 0;
      for (; i + D <= used; i += D) {
        const Doubles sum = load<double, double>(sums + i, D) + attribution_at<S, double, A>(f, g, offset + i, D);
        store<double, double>(sums + i, sum, D);
      }
      if (i < used) {
        const Doubles last = attribution_at<S, double, A>(f, g, offset + i, used - i);
        store<double, double>(sums + i, load<double, double>(sums + i, used - i) + last, used - i);
      }
    }
    const int64_t out = minimum(cells - start, length);
    for (int64_t p = 0; p < out; ++p) {
      double sum = 0.0;
      for (int64_t r = 0; r < side; ++r) {
        sum += sums[r * cells + p];
      }
      map[start + p] = sum;
    }
  }
}

// map[p] = the sum over the first n channels, for the cells p of `range` of an [N, C] sample.
template <typename S, typename A>
void sum_rows(const StorageType<S>* f, const StorageType<S>* g, int64_t channels, int64_t count, Range range,
              double* map) {
  for (int64_t p = range.first; p < range.last; ++p) {
    const int64_t offset = p * channels;
    Doubles sums[4] = {};
    int64_t c = 0;
    for (; c + 4 * D <= count; c += 4 * D) {
      for (int64_t r = 0; r < 4; ++r) {
        sums[r] += attribution_at<S, double, A>(f, g, offset + c + r * D, D);
      }
    }
    for (; c < count; c += D) {
      sums[0] += attribution_at<S, double, A>(f, g, offset + c, minimum(D, count - c));
    }
    map[p] = horizontal_sum<double>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
}

void accumulate_map(const LossProblem& problem, Storage storage, const void* activation, const void* gradient,
                    Range range, double* map) {
  dispatch_storage_and_attribution(problem, storage, [&]<typename S, typename A>() {
    const auto* f = static_cast<const StorageType<S>*>(activation);
    const auto* g = static_cast<const StorageType<S>*>(gradient);
    if (problem.layout == Layout::contiguous) {
      sum_channels<S, A>(f, g, problem.cells(), range, map);
    } else {
      sum_rows<S, A>(f, g, problem.channels, problem.count, range, map);
    }
  });
}

// Moments of a part of a channel, and the mean of q over the same cells, which merging needs.
struct PartialMoments {
  double cells, mean, square, product, plane_mean;
};

// Moments of the union of two parts, without cancellation (Chan, Golub and LeVeque).
[[gnu::always_inline]] inline void merge(PartialMoments& whole, const PartialMoments& part) {
  const double cells = whole.cells + part.cells;
  const double share = part.cells / cells, weight = whole.cells * share;
  const double step = part.mean - whole.mean, plane_step = part.plane_mean - whole.plane_mean;
  whole.square += part.square + step * step * weight;
  whole.product += part.product + step * plane_step * weight;
  whole.mean += step * share;
  whole.plane_mean += plane_step * share;
  whole.cells = cells;
}

// Moments of a [n] against q [n], in two passes. Both must be readable up to the next whole vector.
[[gnu::always_inline]] inline PartialMoments moments_of(const double* a, const double* q, int64_t n) {
  const auto count = static_cast<double>(n);
  Doubles sum{}, plane_sum{};
  for (int64_t i = 0; i < n; i += D) {
    const int64_t used = minimum(D, n - i);
    sum += keep_first<double>(load<double, double>(a + i, D), used);
    plane_sum += keep_first<double>(load<double, double>(q + i, D), used);
  }
  const double mean = horizontal_sum<double>(sum) / count, plane_mean = horizontal_sum<double>(plane_sum) / count;
  Doubles square{}, product{};
  for (int64_t i = 0; i < n; i += D) {
    const int64_t used = minimum(D, n - i);
    const Doubles centred = keep_first<double>(load<double, double>(a + i, D) - mean, used);
    square += centred * centred;
    product += centred * (load<double, double>(q + i, D) - plane_mean);
  }
  return {count, mean, horizontal_sum<double>(square), horizontal_sum<double>(product), plane_mean};
}

// to [n] = plane [n], as double.
template <typename T>
[[gnu::always_inline]] inline void widen_plane(const T* plane, int64_t n, double* to) {
  for (int64_t i = 0; i < n; i += D) {
    store<double, double>(to + i, load<T, double>(plane + i, minimum(D, n - i)), D);
  }
}

// Channels of a contiguous layer: two passes over each tile, whose moments are merged in order.
template <typename S, typename A>
void moments_of_channels(const StorageType<S>* f, const StorageType<S>* g, const ComputeType<S>* plane, int64_t cells,
                         Range channels, Moments* moments) {
  alignas(64) double a[TILE + 2 * D], q[TILE + 2 * D];
  const auto fill = [&](int64_t offset, int64_t n) {
    for (int64_t i = 0; i < n; i += D) {
      store<double, double>(a + i, attribution_at<S, double, A>(f, g, offset + i, minimum(D, n - i)), D);
    }
    store<double, double>(a + n, Doubles{}, D);
  };
  if (cells <= TILE) {
    const int64_t side = TILE / cells;
    widen_plane(plane, cells, q);
    for (int64_t c = channels.first; c < channels.last; c += side) {
      const int64_t used = minimum(side, channels.last - c);
      fill(c * cells, used * cells);
      for (int64_t r = 0; r < used; ++r) {
        const PartialMoments part = moments_of(a + r * cells, q, cells);
        moments[c - channels.first + r] = {part.mean, part.square, part.product};
      }
    }
    return;
  }
  for (int64_t c = channels.first; c < channels.last; ++c) {
    PartialMoments whole{};
    for (int64_t start = 0; start < cells; start += TILE) {
      const int64_t n = minimum(TILE, cells - start);
      widen_plane(plane + start, n, q);
      fill(c * cells + start, n);
      merge(whole, moments_of(a, q, n));
    }
    moments[c - channels.first] = {whole.mean, whole.square, whole.product};
  }
}

// Channels of a channels_last layer: the same, with the channels in SIMD lanes.
template <typename S, typename A>
void moments_of_columns(const StorageType<S>* f, const StorageType<S>* g, const ComputeType<S>* plane, int64_t cells,
                        int64_t channels, Range range, Moments* moments) {
  constexpr int64_t ROWS = 64;  // with CHANNEL_BLOCK channels, 64 KiB of float32: the second pass reads from cache
  constexpr int64_t VECTORS = CHANNEL_BLOCK / D;
  PartialMoments whole[CHANNEL_BLOCK] = {};
  const int64_t width = range.last - range.first;
  for (int64_t start = 0; start < cells; start += ROWS) {
    const int64_t end = minimum(start + ROWS, cells);
    const auto count = static_cast<double>(end - start);
    Doubles mean[VECTORS] = {}, square[VECTORS] = {}, product[VECTORS] = {};
    double plane_mean = 0.0;
    for (int64_t p = start; p < end; ++p) {
      const int64_t offset = p * channels + range.first;
      for (int64_t c = 0; c < width; c += D) {
        mean[c / D] += attribution_at<S, double, A>(f, g, offset + c, minimum(D, width - c));
      }
      plane_mean += static_cast<double>(plane[p]);
    }
    for (Doubles& value : mean) {
      value /= count;
    }
    plane_mean /= count;
    for (int64_t p = start; p < end; ++p) {
      const int64_t offset = p * channels + range.first;
      const double q = static_cast<double>(plane[p]) - plane_mean;
      for (int64_t c = 0; c < width; c += D) {
        const Doubles centred = attribution_at<S, double, A>(f, g, offset + c, minimum(D, width - c)) - mean[c / D];
        square[c / D] += centred * centred;
        product[c / D] += centred * q;
      }
    }
    for (int64_t c = 0; c < width; ++c) {
      merge(whole[c], {count, mean[c / D][c % D], square[c / D][c % D], product[c / D][c % D], plane_mean});
    }
  }
  for (int64_t c = 0; c < width; ++c) {
    moments[c] = {whole[c].mean, whole[c].square, whole[c].product};
  }
}

void channel_moments(const LossProblem& problem, Storage storage, const void* activation, const void* gradient,
                     const void* plane, Range channels, Moments* moments) {
  dispatch_storage_and_attribution(problem, storage, [&]<typename S, typename A>() {
    const auto* f = static_cast<const StorageType<S>*>(activation);
    const auto* g = static_cast<const StorageType<S>*>(gradient);
    const auto* q = static_cast<const ComputeType<S>*>(plane);
    if (problem.layout == Layout::contiguous) {
      moments_of_channels<S, A>(f, g, q, problem.cells(), channels, moments);
    } else {
      moments_of_columns<S, A>(f, g, q, problem.cells(), problem.channels, channels, moments);
    }
  });
}

// The gradients with respect to activation and gradient, from the derivative of the loss with respect to the
// attribution. To be included by instances.h only, inside its namespace.
//
// Classes of the concept Slopes supply d = dL/da: at(i, n) loads the AttributionSlope of elements i .. i + n, whose
// of(a) is d.

// d = q, which includes all factors, or slope * (q + curve * (a - mean)) for a group with coefficients (A, B, mu).
template <typename T, bool Curved>
struct AttributionSlope {
  Simd<T> slope, q, curve, mean;

  [[gnu::always_inline]] Simd<T> of(Simd<T> a) const {
    if constexpr (Curved) {
      return slope * (q + curve * (a - mean));
    } else {
      return q;
    }
  }
};

template <typename T>
[[gnu::always_inline]] inline Simd<T> broadcast(T value) {
  return Simd<T>{} + value;
}

// For a run of whole channels: the plane repeated. Elements must be requested in order, from the start of a channel.
template <typename T, bool Curved>
struct Repeated {
  static constexpr bool uses_attribution = Curved;
  static constexpr bool in_order = true;
  const T* pattern;  // [period + a vector]
  int64_t period;    // a multiple of the cells, at least a vector
  AttributionSlope<T, Curved> line;
  int64_t phase = 0;

  [[gnu::always_inline]] AttributionSlope<T, Curved> at(int64_t, int64_t n) {
    line.q = load<T, T>(pattern + phase, lanes<T>);
    phase += n;
    phase -= phase >= period ? period : 0;
    return line;
  }
};

// For a single channel, which starts at element `start`.
template <typename T>
struct Once {
  static constexpr bool uses_attribution = true;
  static constexpr bool in_order = false;
  const T* plane;  // [N]
  int64_t start;
  AttributionSlope<T, true> line;

  [[gnu::always_inline]] AttributionSlope<T, true> at(int64_t i, int64_t n) {
    line.q = load<T, T>(plane + (i - start), n);
    return line;
  }
};

// For one cell of a channels_last sample: the same slope for all its channels.
template <typename T, bool Curved>
struct Cell {
  static constexpr bool uses_attribution = Curved;
  static constexpr bool in_order = false;
  AttributionSlope<T, Curved> line;

  [[gnu::always_inline]] AttributionSlope<T, Curved> at(int64_t, int64_t) const { return line; }
};

// For one cell of a channels_last sample, with coefficients per channel.
template <typename T>
struct CellOfEach {
  static constexpr bool uses_attribution = true;
  static constexpr bool in_order = false;
  const T* slopes;  // [n]: A
  const T* curves;  // [n]: B
  const T* means;   // [n]: mu
  int64_t start;
  Simd<T> q;

  [[gnu::always_inline]] AttributionSlope<T, true> at(int64_t i, int64_t n) const {
    const int64_t c = i - start;
    return {load<T, T>(slopes + c, n), q, load<T, T>(curves + c, n), load<T, T>(means + c, n)};
  }
};

template <typename S, typename A>
struct Gradients {
  using T = ComputeType<S>;
  static constexpr int64_t W = lanes<T>;
  const StorageType<S>* f;
  const StorageType<S>* g;
  StorageType<S>* df;
  StorageType<S>* dg;
  bool streams;

  template <bool Stream>
  [[gnu::always_inline]] static void put(StorageType<S>* to, Simd<T> value, int64_t n) {
    if constexpr (Stream) {
      stream_store<S, T>(to, value);
    } else {
      store<S, T>(to, value, n);
    }
  }

  template <bool Stream, typename Slopes>
  [[gnu::always_inline]] void vector(int64_t i, int64_t n, Slopes& slope) const {
    Simd<T> activation{}, gradient{};
    if constexpr (A::reads_activation) {
      if (Slopes::uses_attribution || dg != nullptr) {
        prefetch(f + i);
        activation = load<S, T>(f + i, n);
      }
    }
    if constexpr (A::reads_gradient) {
      prefetch(g + i);
      gradient = load<S, T>(g + i, n);
    }
    const Simd<T> d = slope.at(i, n).of(A::template of<T>(activation, gradient));
    if (df != nullptr) {
      put<Stream>(df + i, A::template to_activation<T>(d, gradient), n);
    }
    if (dg != nullptr) {
      put<Stream>(dg + i, A::template to_gradient<T>(d, activation, gradient), n);
    }
  }

  // The number of elements from i to the next one at which vectors of df and dg are aligned.
  [[nodiscard]] int64_t elements_to_alignment(int64_t i) const {
    constexpr int64_t bytes = W * static_cast<int64_t>(sizeof(StorageType<S>));
    const auto address = reinterpret_cast<uintptr_t>((df != nullptr ? df : dg) + i);
    const int64_t over = static_cast<int64_t>(address % bytes) / static_cast<int64_t>(sizeof(StorageType<S>));
    return over == 0 ? 0 : W - over;
  }

  template <typename Slopes>
  void run(int64_t begin, int64_t end, Slopes slope) const {
    int64_t i = begin;
    if (streams) {
      if (const int64_t head = minimum(elements_to_alignment(i), end - i)) {
        vector<false>(i, head, slope);
        i += head;
      }
      for (; i + W <= end; i += W) {
        vector<true>(i, W, slope);
      }
    } else {
      for (; i + W <= end; i += W) {
        vector<false>(i, W, slope);
      }
      if (!Slopes::in_order && i < end && end - begin >= W) {
        vector<false>(end - W, W, slope);  // overlaps the one before; what both write is the same
        return;
      }
    }
    if (i < end) {
      vector<false>(i, end - i, slope);
    }
  }

  void zero(int64_t begin, int64_t end) const {
    StorageType<S>* const both[] = {df, dg};
    for (StorageType<S>* to : both) {
      int64_t i = begin;
      if (to != nullptr && streams) {
        i += minimum(elements_to_alignment(i), end - i);
        store<S, T>(to + begin, Simd<T>{}, i - begin);
        for (; i + W <= end; i += W) {
          stream_store<S, T>(to + i, Simd<T>{});
        }
      }
      for (; to != nullptr && i < end; i += W) {
        store<S, T>(to + i, Simd<T>{}, minimum(W, end - i));
      }
    }
  }
};

template <typename S, typename A>
void gradients_of_channels(const LossProblem& problem, const Gradients<S, A>& to, const Derivative<ComputeType<S>>& of,
                           Range channels) {
  using T = ComputeType<S>;
  const int64_t cells = problem.cells(), live = minimum(channels.last, problem.count);
  if (channels.first < live) {
    if (problem.grouping == Grouping::each) {
      for (int64_t c = channels.first; c < live; ++c) {
        const T* group = of.coefficients + 3 * c;
        to.run(c * cells, (c + 1) * cells,
               Once<T>{of.plane,
                       c * cells,
                       {broadcast<T>(of.scale * group[0]), {}, broadcast<T>(group[1]), broadcast<T>(group[2])}});
      }
    } else {
      const bool curved = problem.grouping == Grouping::all;
      const int64_t period = cells < lanes<T> ? (lanes<T> + cells - 1) / cells * cells : cells;
      const T factor = curved ? T(1) : of.scale;
      for (int64_t i = 0, p = 0; i < period + lanes<T>; ++i) {
        of.scratch[i] = factor * of.plane[p];
        p = p + 1 == cells ? 0 : p + 1;
      }
      if (curved) {
        const T* group = of.coefficients;
        to.run(
            channels.first * cells, live * cells,
            Repeated<T, true>{of.scratch,
                              period,
                              {broadcast<T>(of.scale * group[0]), {}, broadcast<T>(group[1]), broadcast<T>(group[2])}});
      } else {
        to.run(channels.first * cells, live * cells, Repeated<T, false>{of.scratch, period, {}});
      }
    }
  }
  to.zero((live > channels.first ? live : channels.first) * cells, channels.last * cells);
}

template <typename S, typename A>
void gradients_of_cells(const LossProblem& problem, const Gradients<S, A>& to, const Derivative<ComputeType<S>>& of,
                        Range range) {
  using T = ComputeType<S>;
  const int64_t channels = problem.channels, count = problem.count;
  T* slopes = of.scratch;
  T* curves = slopes + count;
  T* means = curves + count;
  if (problem.grouping == Grouping::each) {
    for (int64_t c = 0; c < count; ++c) {
      slopes[c] = of.scale * of.coefficients[3 * c];
      curves[c] = of.coefficients[3 * c + 1];
      means[c] = of.coefficients[3 * c + 2];
    }
  }
  for (int64_t p = range.first; p < range.last; ++p) {
    const int64_t begin = p * channels, end = begin + count;
    switch (problem.grouping) {
      case Grouping::map:
        to.run(begin, end, Cell<T, false>{{{}, broadcast<T>(of.scale * of.plane[p]), {}, {}}});
        break;
      case Grouping::all: {
        const T* group = of.coefficients;
        to.run(begin, end,
               Cell<T, true>{{broadcast<T>(of.scale * group[0]), broadcast<T>(of.plane[p]), broadcast<T>(group[1]),
                              broadcast<T>(group[2])}});
        break;
      }
      case Grouping::each:
        to.run(begin, end, CellOfEach<T>{slopes, curves, means, begin, broadcast<T>(of.plane[p])});
        break;
    }
    to.zero(end, begin + channels);
  }
}

void gradients(const LossProblem& problem, Storage storage, const void* activation, const void* gradient,
               const void* derivative, Range range, bool streams, void* d_activation, void* d_gradient) {
  dispatch_storage_and_attribution(problem, storage, [&]<typename S, typename A>() {
    const auto& of = *static_cast<const Derivative<ComputeType<S>>*>(derivative);
    const Gradients<S, A> to{static_cast<const StorageType<S>*>(activation),
                             static_cast<const StorageType<S>*>(gradient), static_cast<StorageType<S>*>(d_activation),
                             static_cast<StorageType<S>*>(d_gradient), streams};
    const int64_t width = problem.layout == Layout::contiguous ? problem.cells() : problem.channels;
    if (of.scale == 0) {  // whatever the sample holds, it is not read
      to.zero(range.first * width, range.last * width);
    } else if (problem.layout == Layout::contiguous) {
      gradients_of_channels<S, A>(problem, to, of, range);
    } else {
      gradients_of_cells<S, A>(problem, to, of, range);
    }
  });
  if (streams) {
    stream_fence();
  }
}

// The loops of batch normalisation's passes, over planes (channels outermost) and over rows (channels innermost).
// To be included by instances.h only, inside its namespace.

// Accumulators of T are flushed to double after this many vectors.
constexpr int64_t FLUSH = 128;
// Vectors of channels that a reduction over rows accumulates in registers.
constexpr int64_t TILE = 4;
// Rows over which an elementwise pass keeps the channels' coefficients in registers.
constexpr int64_t STRIP = 16;
// Grain size of parallel_for, in elements.
constexpr int64_t GRAIN = 16384;

// One vector of elements: xc = x - mean, G, v.
template <typename T>
struct Element {
  Simd<T> xc;
  Simd<T> grad;
  Simd<T> grad_grad;
};

// The last n lanes, the others 0.
template <typename T>
[[gnu::always_inline]] inline Element<T> keep_last(const Element<T>& e, int64_t n) {
  const auto keep = lane_indices<T>() >= static_cast<T>(lanes<T> - n);
  return {keep ? e.xc : Simd<T>{}, keep ? e.grad : Simd<T>{}, keep ? e.grad_grad : Simd<T>{}};
}

template <Sums Kind>
constexpr int64_t sums_of = Kind == Sums::backward          ? 2
                            : Kind == Sums::double_backward ? 3
                                                            : 1;
template <Sums Kind>
constexpr bool sums_read_grad = Kind == Sums::backward || Kind == Sums::double_backward;

template <Sums Kind, typename T>
[[gnu::always_inline]] inline void accumulate(const Element<T>& e, Simd<T>* sum) {
  if constexpr (Kind == Sums::input) {
    sum[0] += e.xc;
  } else if constexpr (Kind == Sums::squares) {
    sum[0] += e.xc * e.xc;
  } else if constexpr (Kind == Sums::backward) {
    sum[0] += e.grad;
    sum[1] += e.grad * e.xc;
  } else {
    sum[0] += e.grad_grad;
    sum[1] += e.grad_grad * e.xc;
    sum[2] += e.grad_grad * e.grad;
  }
}

// S is the storage type, T the compute type.
template <typename S, typename T, bool Relu>
struct Loops {
  static constexpr int64_t W = lanes<T>;

  const BatchNormProblem& problem;
  const StorageType<S>* input;
  const StorageType<S>* grad;
  const StorageType<S>* grad_grad;
  const T* table;
  StorageType<S>* output;
  StorageType<S>* second_output;

  explicit Loops(const Pass& pass)
      : problem(pass.problem),
        input(static_cast<const StorageType<S>*>(pass.input)),
        grad(static_cast<const StorageType<S>*>(pass.grad)),
        grad_grad(static_cast<const StorageType<S>*>(pass.grad_grad)),
        table(static_cast<const T*>(pass.table)),
        output(static_cast<StorageType<S>*>(pass.output)),
        second_output(static_cast<StorageType<S>*>(pass.second_output)) {}

  // Row `row` of the table: of the n channels from c on, or of channel c broadcast to all lanes.
  [[gnu::always_inline]] Simd<T> channels_of(int64_t row, int64_t c, int64_t n) const {
    return load<T, T>(table + row * problem.channels + c, n);
  }
  [[gnu::always_inline]] Simd<T> channel_of(int64_t row, int64_t c) const {
    return Simd<T>{} + table[row * problem.channels + c];
  }

  template <bool ReadsGrad>
  [[gnu::always_inline]] Element<T> element(int64_t offset, int64_t n, Simd<T> mean, Simd<T> scale,
                                            Simd<T> bias) const {
    Element<T> e{};
    e.xc = keep_first<T>(load<S, T>(input + offset, n) - mean, n);
    if constexpr (ReadsGrad) {
      e.grad = load<S, T>(grad + offset, n);
      if constexpr (Relu) {
        e.grad = scale * e.xc + bias <= T(0) ? Simd<T>{} : e.grad;
      }
      if (grad_grad != nullptr) {
        e.grad_grad = load<S, T>(grad_grad + offset, n);
      }
    }
    return e;
  }

  // k: the table's rows after the common ones.
  template <Elementwise Kind>
  [[gnu::always_inline]] void write(int64_t offset, int64_t n, Simd<T> mean, Simd<T> scale, Simd<T> bias,
                                    const Simd<T>* k) const {
    const Element<T> e = element<Kind != Elementwise::forward>(offset, n, mean, scale, bias);
    if constexpr (Kind == Elementwise::forward) {
      Simd<T> y = scale * e.xc + bias;
      if constexpr (Relu) {
        y = y <= T(0) ? Simd<T>{} : y;
      }
      store<S, T>(output + offset, y, n);
    } else if constexpr (Kind == Elementwise::backward) {
      store<S, T>(output + offset, k[0] * e.grad + k[1] * e.xc + k[2], n);
    } else {
      Simd<T> d_grad = k[0] * e.grad_grad + k[1] * e.xc + k[2];
      if constexpr (Relu) {
        d_grad = scale * e.xc + bias <= T(0) ? Simd<T>{} : d_grad;
      }
      store<S, T>(output + offset, d_grad, n);
      if (second_output != nullptr) {
        store<S, T>(second_output + offset, k[3] * e.grad + k[4] * e.grad_grad + k[5] * e.xc + k[6], n);
      }
    }
  }

  template <Elementwise Kind>
  static constexpr int64_t pass_row_count = Kind == Elementwise::forward    ? 0
                                            : Kind == Elementwise::backward ? BACKWARD_ROWS - common_rows
                                                                            : DOUBLE_BACKWARD_ROWS - common_rows;

  // [B, C, L], parallel over planes.
  template <Elementwise Kind>
  void apply_planes() const {
    const int64_t C = problem.channels, L = problem.length;
    torch::stable::parallel_for(0, problem.batch * C, at_least_one(GRAIN / L), [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane) {
        const int64_t c = plane % C;
        const Simd<T> mean = channel_of(Row::mean, c), scale = channel_of(Row::scale, c),
                      bias = channel_of(Row::bias, c);
        Simd<T> k[pass_row_count<Kind> + 1];
        for (int64_t row = 0; row < pass_row_count<Kind>; ++row) {
          k[row] = channel_of(common_rows + row, c);
        }
        int64_t i = 0;
        for (; i + W <= L; i += W) {
          write<Kind>(plane * L + i, W, mean, scale, bias, k);
        }
        if (i < L) {  // the last vector overlaps the one before; what both write is the same
          const int64_t n = minimum(W, L);
          write<Kind>(plane * L + L - n, n, mean, scale, bias, k);
        }
      }
    });
  }

  // [B * L, C], parallel over rows.
  template <Elementwise Kind>
  void apply_rows() const {
    const int64_t C = problem.channels;
    torch::stable::parallel_for(0, problem.count(), at_least_one(GRAIN / C), [&](int64_t begin, int64_t end) {
      for (int64_t first_row = begin; first_row < end; first_row += STRIP) {
        const int64_t last_row = minimum(end, first_row + STRIP);
        for (int64_t c = 0; c < C; c += W) {
          const int64_t n = minimum(W, C - c);
          const Simd<T> mean = channels_of(Row::mean, c, n), scale = channels_of(Row::scale, c, n),
                        bias = channels_of(Row::bias, c, n);
          Simd<T> k[pass_row_count<Kind> + 1];
          for (int64_t row = 0; row < pass_row_count<Kind>; ++row) {
            k[row] = channels_of(common_rows + row, c, n);
          }
          for (int64_t row = first_row; row < last_row; ++row) {
            write<Kind>(row * C + c, n, mean, scale, bias, k);
          }
        }
      }
    });
  }

  // [B, C, L] -> [k, C], parallel over channels.
  template <Sums Kind>
  void reduce_planes(double* partial) const {
    constexpr int64_t K = sums_of<Kind>;
    const int64_t C = problem.channels, L = problem.length;
    torch::stable::parallel_for(0, C, at_least_one(GRAIN / problem.count()), [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const Simd<T> mean = channel_of(Row::mean, c), scale = channel_of(Row::scale, c),
                      bias = channel_of(Row::bias, c);
        double sum[K] = {};
        Simd<T> accumulator[K] = {};
        int64_t vectors = 0;
        const auto flush = [&] {
          for (int64_t k = 0; k < K; ++k) {
            sum[k] += horizontal_sum<T>(accumulator[k]);
            accumulator[k] = Simd<T>{};
          }
          vectors = 0;
        };
        for (int64_t b = 0; b < problem.batch; ++b) {
          const int64_t plane = (b * C + c) * L;
          for (int64_t i = 0; i < L;) {
            const int64_t stop = minimum(L, i + (FLUSH - vectors) * W);
            vectors += (stop - i + W - 1) / W;
            for (; i + W <= stop; i += W) {
              accumulate<Kind, T>(element<sums_read_grad<Kind>>(plane + i, W, mean, scale, bias), accumulator);
            }
            if (i < stop) {
              const int64_t n = minimum(W, L);
              const auto e = element<sums_read_grad<Kind>>(plane + L - n, n, mean, scale, bias);
              accumulate<Kind, T>(L < W ? e : keep_last<T>(e, L - i), accumulator);
              i = stop;
            }
            if (vectors >= FLUSH) {
              flush();
            }
          }
        }
        flush();
        for (int64_t k = 0; k < K; ++k) {
          partial[k * C + c] = sum[k];
        }
      }
    });
  }

  // [B * L, C] -> [blocks, k, C], parallel over blocks of rows.
  template <Sums Kind>
  void reduce_rows(double* partial) const {
    constexpr int64_t K = sums_of<Kind>;
    const int64_t C = problem.channels, rows = problem.count(), blocks = reduction_blocks(problem);
    const int64_t per_block = (rows + blocks - 1) / blocks;
    const int64_t grain = at_least_one(GRAIN / (per_block * C));
    torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first_row = minimum(rows, block * per_block), last_row = minimum(rows, first_row + per_block);
        for (int64_t c = 0; c < C; c += TILE * W) {
          reduce_tile<Kind>(first_row, last_row, c, partial + block * K * C);
        }
      }
    });
  }

  template <Sums Kind>
  void reduce_tile(int64_t first_row, int64_t last_row, int64_t c, double* partial) const {
    constexpr int64_t K = sums_of<Kind>;
    const int64_t C = problem.channels, tiles = minimum(TILE, (C - c + W - 1) / W);
    Simd<T> mean[TILE], scale[TILE], bias[TILE];
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t n = minimum(W, C - c - t * W);
      mean[t] = channels_of(Row::mean, c + t * W, n);
      scale[t] = channels_of(Row::scale, c + t * W, n);
      bias[t] = channels_of(Row::bias, c + t * W, n);
    }
    double sum[K][TILE * W] = {};
    for (int64_t row = first_row; row < last_row;) {
      Simd<T> accumulator[TILE][K] = {};
      for (const int64_t stop = minimum(last_row, row + FLUSH); row < stop; ++row) {
        const int64_t offset = row * C + c;
        if (c + TILE * W <= C) [[likely]] {
          for (int64_t t = 0; t < TILE; ++t) {
            accumulate<Kind, T>(element<sums_read_grad<Kind>>(offset + t * W, W, mean[t], scale[t], bias[t]),
                                accumulator[t]);
          }
        } else {
          for (int64_t t = 0; t < tiles; ++t) {
            const int64_t n = minimum(W, C - c - t * W);
            accumulate<Kind, T>(element<sums_read_grad<Kind>>(offset + t * W, n, mean[t], scale[t], bias[t]),
                                accumulator[t]);
          }
        }
      }
      for (int64_t t = 0; t < tiles; ++t) {
        for (int64_t k = 0; k < K; ++k) {
          for (int64_t i = 0; i < W; ++i) {
            sum[k][t * W + i] += static_cast<double>(accumulator[t][k][i]);
          }
        }
      }
    }
    for (int64_t k = 0; k < K; ++k) {
      for (int64_t i = 0; i < minimum(TILE * W, C - c); ++i) {
        partial[k * C + c + i] = sum[k][i];
      }
    }
  }

  template <Sums Kind>
  void reduce(double* partial) const {
    problem.channels_innermost() ? reduce_rows<Kind>(partial) : reduce_planes<Kind>(partial);
  }
  template <Elementwise Kind>
  void apply() const {
    problem.channels_innermost() ? apply_rows<Kind>() : apply_planes<Kind>();
  }
};

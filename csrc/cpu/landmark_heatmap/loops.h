// The sum or maximum of the Gaussians of one sample's landmarks, in double, from separable factors.
// To be included by cpu/pal_loss/instances.h only, inside its namespace.

using Doubles = Simd<double>;
constexpr int64_t D = lanes<double>;

// exp(x) for x <= 0, accurate to 1 ulp; 0 below -708, where results become subnormal.
[[gnu::always_inline]] inline Doubles exp_of_negative(Doubles x) {
  constexpr double LOG2_E = 1.4426950408889634074, LN2_HIGH = 6.93147180369123816490e-01,
                   LN2_LOW = 1.90821492927058770002e-10;
  // Adding 1.5 * 2^52 rounds to an integer, in the low bits of the mantissa.
  constexpr double ROUNDER = 0x1.8p52;
  const Doubles least = Doubles{} - 708.0;
  const Doubles bounded = x < least ? least : x;
  const Doubles shifted = bounded * LOG2_E + ROUNDER;
  const Doubles whole = shifted - ROUNDER;
  const Doubles r = (bounded - whole * LN2_HIGH) - whole * LN2_LOW;  // |r| <= ln(2) / 2
  Doubles series = Doubles{} + 1.0 / 6227020800.0;                   // 1 / 13!
  series = series * r + 1.0 / 479001600.0;
  series = series * r + 1.0 / 39916800.0;
  series = series * r + 1.0 / 3628800.0;
  series = series * r + 1.0 / 362880.0;
  series = series * r + 1.0 / 40320.0;
  series = series * r + 1.0 / 5040.0;
  series = series * r + 1.0 / 720.0;
  series = series * r + 1.0 / 120.0;
  series = series * r + 1.0 / 24.0;
  series = series * r + 1.0 / 6.0;
  series = series * r + 0.5;
  series = series * r + 1.0;
  series = series * r + 1.0;
  const Doubles power = reinterpret_cast<Doubles>((reinterpret_cast<Simd<uint64_t>>(shifted) + 1023u) << 52);
  return x < least ? Doubles{} : series * power;
}

// Centres of cells along one axis, in image pixels: x_j = (j + 0.5) * length / cells - 0.5.
struct Axis {
  int64_t cells;
  double step;

  [[gnu::always_inline]] Doubles centres(int64_t from) const {
    return (lane_indices<double>() + (static_cast<double>(from) + 0.5)) * step - 0.5;
  }
  [[nodiscard]] double centre(int64_t index) const { return (static_cast<double>(index) + 0.5) * step - 0.5; }
};

[[nodiscard]] inline Axis horizontal(const HeatmapProblem& problem) {
  return {problem.width, problem.image_width / static_cast<double>(problem.width)};
}
[[nodiscard]] inline Axis vertical(const HeatmapProblem& problem) {
  return {problem.height, problem.image_height / static_cast<double>(problem.height)};
}

// out [padded(cells)] = strength * exp(-(centre - position)^2 / (2 sigma^2)), 0 in the padding.
inline void gaussian(const Axis& axis, double position, double sigma, double strength, double* out) {
  const double inverse = 1.0 / sigma;
  for (int64_t i = 0; i < padded(axis.cells); i += D) {
    const Doubles distance = (axis.centres(i) - position) * inverse;
    const Doubles value = strength * exp_of_negative(-0.5 * distance * distance);
    store<double, double>(out + i, keep_first<double>(value, minimum(D, axis.cells - i)), D);
  }
}

template <typename Real>
[[nodiscard]] inline bool is_valid(const Landmarks<Real>& landmarks, int64_t k) {
  const double x = landmarks.points[2 * k], y = landmarks.points[2 * k + 1];
  return __builtin_isfinite(x) && __builtin_isfinite(y) && (!landmarks.visible || landmarks.visible[k]);
}

template <typename Real>
[[nodiscard]] inline double weight_of(const Landmarks<Real>& landmarks, int64_t k) {
  return landmarks.weights ? static_cast<double>(landmarks.weights[k]) : 1.0;
}

// The factors of up to LANDMARK_BLOCK valid landmarks, in their order.
struct Block {
  double* rows;     // [64, padded(H)], times the landmark's weight
  double* columns;  // [64, padded(W)]
  int64_t index[LANDMARK_BLOCK];
  int64_t count;
};

// Fills `block` with the next valid landmarks from `k` on. Returns the first landmark that was not visited.
template <typename Real>
int64_t next_block(const HeatmapProblem& problem, const Landmarks<Real>& landmarks, int64_t k, Block& block) {
  block.count = 0;
  for (; k < problem.landmarks && block.count < LANDMARK_BLOCK; ++k) {
    if (!is_valid(landmarks, k)) {
      continue;
    }
    const int64_t slot = block.count++;
    block.index[slot] = k;
    gaussian(vertical(problem), landmarks.points[2 * k + 1], problem.sigma, weight_of(landmarks, k),
             block.rows + slot * padded(problem.height));
    gaussian(horizontal(problem), landmarks.points[2 * k], problem.sigma, 1.0,
             block.columns + slot * padded(problem.width));
  }
  return k;
}

// out += the block's Gaussians, for rows [i, i + Rows) and Vectors * D columns from j on.
template <int64_t Rows, int64_t Vectors>
inline void add_to_tile(const HeatmapProblem& problem, const Block& block, int64_t i, int64_t j, double* out) {
  const int64_t width = problem.width, row_stride = padded(problem.height), column_stride = padded(width);
  Doubles sums[Rows][Vectors] = {};
  for (int64_t k = 0; k < block.count; ++k) {
    const double* y = block.rows + k * row_stride + i;
    Doubles x[Vectors];
    for (int64_t v = 0; v < Vectors; ++v) {
      x[v] = load<double, double>(block.columns + k * column_stride + j + v * D, D);
    }
    for (int64_t r = 0; r < Rows; ++r) {
      for (int64_t v = 0; v < Vectors; ++v) {
        sums[r][v] += y[r] * x[v];
      }
    }
  }
  for (int64_t r = 0; r < Rows; ++r) {
    for (int64_t v = 0; v < Vectors; ++v) {
      const int64_t column = j + v * D, n = minimum(D, width - column);
      double* to = out + (i + r) * width + column;
      store<double, double>(to, load<double, double>(to, n) + sums[r][v], n);
    }
  }
}

template <int64_t Rows>
inline void add_to_rows(const HeatmapProblem& problem, const Block& block, int64_t i, double* out) {
  int64_t j = 0;
  for (; j + 2 * D <= problem.width; j += 2 * D) {
    add_to_tile<Rows, 2>(problem, block, i, j, out);
  }
  for (; j < problem.width; j += D) {
    add_to_tile<Rows, 1>(problem, block, i, j, out);
  }
}

// Register tiles of 4 x 2 vectors: enough accumulators to hide the latency of additions, few enough for 16 registers.
inline void add_block(const HeatmapProblem& problem, const Block& block, double* out) {
  int64_t i = 0;
  for (; i + 4 <= problem.height; i += 4) {
    add_to_rows<4>(problem, block, i, out);
  }
  for (; i < problem.height; ++i) {
    add_to_rows<1>(problem, block, i, out);
  }
}

// Updates each cell's maximum and, if `winner` is not null, the index of the landmark that attains it. Ties go to the
// first landmark.
inline void maximise_block(const HeatmapProblem& problem, const Block& block, double* out, int64_t* winner) {
  using Indices = Simd<int64_t>;
  for (int64_t i = 0; i < problem.height; ++i) {
    for (int64_t j = 0; j < problem.width; j += D) {
      const int64_t n = minimum(D, problem.width - j), cell = i * problem.width + j;
      Doubles best = load<double, double>(out + cell, n);
      Indices indices = winner ? load<int64_t, int64_t>(winner + cell, n) : Indices{};
      for (int64_t k = 0; k < block.count; ++k) {
        const double y = block.rows[k * padded(problem.height) + i];
        const Doubles candidate = y * load<double, double>(block.columns + k * padded(problem.width) + j, D);
        indices = candidate > best ? Indices{} + block.index[k] : indices;
        best = candidate > best ? candidate : best;
      }
      store<double, double>(out + cell, best, n);
      if (winner) {
        store<int64_t, int64_t>(winner + cell, indices, n);
      }
    }
  }
}

template <typename Real>
bool draw_into(const HeatmapProblem& problem, const Landmarks<Real>& landmarks, double* scratch, double* out,
               int64_t* winner) {
  Block block;
  block.rows = scratch;
  block.columns = scratch + LANDMARK_BLOCK * padded(problem.height);
  const bool sum = problem.combine == Combine::sum;
  for (int64_t i = 0; i < problem.cells(); ++i) {
    out[i] = sum ? 0.0 : -__builtin_inf();
  }
  bool any = false;
  for (int64_t k = 0; k < problem.landmarks;) {
    k = next_block(problem, landmarks, k, block);
    any = any || block.count > 0;
    if (sum) {
      add_block(problem, block, out);
    } else {
      maximise_block(problem, block, out, winner);
    }
  }
  for (int64_t i = 0; !any && i < problem.cells(); ++i) {
    out[i] = 0.0;
  }
  return any;
}

template <typename Real>
bool draw(const HeatmapProblem& problem, const Landmarks<Real>& landmarks, double* scratch, double* out) {
  return draw_into(problem, landmarks, scratch, out, nullptr);
}

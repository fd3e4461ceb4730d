// Gaussians at landmarks, of one sample, in double.
// To be included by pal_loss_instances.h only, inside its namespace.

using Doubles = Lanes<double>;
constexpr int64_t D = lanes<double>;

// exp(x) for x <= 0, to one unit in the last place; 0 below -708, where doubles end.
[[gnu::always_inline]] inline Doubles exp_of_negative(Doubles x) {
  constexpr double LOG2_E = 1.4426950408889634074, LN2_HIGH = 6.93147180369123816490e-01,
                   LN2_LOW = 1.90821492927058770002e-10;
  // Adding 1.5 * 2^52 leaves the nearest integer in the low bits of the mantissa.
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
  const Doubles power = reinterpret_cast<Doubles>((reinterpret_cast<Lanes<uint64_t>>(shifted) + 1023u) << 52);
  return x < least ? Doubles{} : series * power;
}

// Centres of cells along one axis, in pixels of the image: x_j = (j + 0.5) * length / cells - 0.5.
struct Axis {
  int64_t cells;
  double step;

  [[gnu::always_inline]] Doubles centres(int64_t from) const {
    return (lane_numbers<double>() + (static_cast<double>(from) + 0.5)) * step - 0.5;
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
    store<double, double>(out + i, first<double>(value, smaller(D, axis.cells - i)), D);
  }
}

template <typename Real>
[[nodiscard]] inline bool is_valid(const Landmarks<Real>& landmarks, int64_t k) {
  const double x = landmarks.points[2 * k], y = landmarks.points[2 * k + 1];
  return __builtin_isfinite(x) && __builtin_isfinite(y) && (!landmarks.visible || landmarks.visible[k]);
}

template <typename Real>
[[nodiscard]] inline double strength_of(const Landmarks<Real>& landmarks, int64_t k) {
  return landmarks.weights ? static_cast<double>(landmarks.weights[k]) : 1.0;
}

// The Gaussians of up to LANDMARK_BLOCK valid landmarks, in their order.
struct Block {
  double* rows;     // [64, padded(H)], times the landmark's weight
  double* columns;  // [64, padded(W)]
  int64_t index[LANDMARK_BLOCK];
  int64_t count;
};

// Fills `block` with the next valid landmarks from `k` on. Returns where to go on.
template <typename Real>
int64_t next_block(const HeatmapProblem& problem, const Landmarks<Real>& landmarks, int64_t k, Block& block) {
  block.count = 0;
  for (; k < problem.landmarks && block.count < LANDMARK_BLOCK; ++k) {
    if (!is_valid(landmarks, k)) {
      continue;
    }
    const int64_t slot = block.count++;
    block.index[slot] = k;
    gaussian(vertical(problem), landmarks.points[2 * k + 1], problem.sigma, strength_of(landmarks, k),
             block.rows + slot * padded(problem.height));
    gaussian(horizontal(problem), landmarks.points[2 * k], problem.sigma, 1.0,
             block.columns + slot * padded(problem.width));
  }
  return k;
}

// out += the block's Gaussians, at rows [i, i + Rows).
template <int64_t Rows>
inline void add_to_rows(const HeatmapProblem& problem, const Block& block, int64_t i, double* out) {
  const int64_t width = problem.width, row_stride = padded(problem.height), column_stride = padded(width);
  for (int64_t j = 0; j < width; j += D) {
    Doubles sums[Rows] = {};
    for (int64_t k = 0; k < block.count; ++k) {
      const Doubles x = load<double, double>(block.columns + k * column_stride + j, D);
      const double* y = block.rows + k * row_stride + i;
      for (int64_t r = 0; r < Rows; ++r) {
        sums[r] += y[r] * x;
      }
    }
    const int64_t n = smaller(D, width - j);
    for (int64_t r = 0; r < Rows; ++r) {
      double* to = out + (i + r) * width + j;
      store<double, double>(to, load<double, double>(to, n) + sums[r], n);
    }
  }
}

inline void add_block(const HeatmapProblem& problem, const Block& block, double* out) {
  int64_t i = 0;
  for (; i + 4 <= problem.height; i += 4) {
    add_to_rows<4>(problem, block, i, out);
  }
  for (; i < problem.height; ++i) {
    add_to_rows<1>(problem, block, i, out);
  }
}

// The strongest Gaussian of each cell and, if `winner` is given, whose it is. A tie goes to the first landmark.
inline void strongest_of_block(const HeatmapProblem& problem, const Block& block, double* out, int64_t* winner) {
  using Names = Lanes<int64_t>;
  for (int64_t i = 0; i < problem.height; ++i) {
    for (int64_t j = 0; j < problem.width; j += D) {
      const int64_t n = smaller(D, problem.width - j), at = i * problem.width + j;
      Doubles best = load<double, double>(out + at, n);
      Names names = winner ? load<int64_t, int64_t>(winner + at, n) : Names{};
      for (int64_t k = 0; k < block.count; ++k) {
        const double y = block.rows[k * padded(problem.height) + i];
        const Doubles candidate = y * load<double, double>(block.columns + k * padded(problem.width) + j, D);
        names = candidate > best ? Names{} + block.index[k] : names;
        best = candidate > best ? candidate : best;
      }
      store<double, double>(out + at, best, n);
      if (winner) {
        store<int64_t, int64_t>(winner + at, names, n);
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
      strongest_of_block(problem, block, out, winner);
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

// With e_ij the landmark's Gaussian without its weight w and G the gradient of its cells:
// dw = sum G e, dx = w / sigma^2 sum G e (x_j - x), dy likewise.
template <typename Real>
void store_gradient(const HeatmapProblem& problem, const Landmarks<Real>& landmarks, int64_t k, double mass,
                    double horizontal_moment, double vertical_moment, Real* d_points, Real* d_weights) {
  const double by_distance = strength_of(landmarks, k) / problem.sigma / problem.sigma;
  if (d_points) {
    d_points[2 * k] = static_cast<Real>(by_distance * horizontal_moment);
    d_points[2 * k + 1] = static_cast<Real>(by_distance * vertical_moment);
  }
  if (d_weights) {
    d_weights[k] = static_cast<Real>(mass);
  }
}

template <typename Real>
void backward_of_sum(const HeatmapProblem& problem, const Landmarks<Real>& landmarks, const double* grad,
                     double* scratch, Real* d_points, Real* d_weights) {
  const Axis across = horizontal(problem), down = vertical(problem);
  const int64_t height = problem.height, width = problem.width;
  double* row = scratch;                 // [padded(W)]: the Gaussian along x
  double* column = row + padded(width);  // [padded(H)]: along y
  for (int64_t k = 0; k < problem.landmarks; ++k) {
    if (!is_valid(landmarks, k)) {
      continue;
    }
    const double x = landmarks.points[2 * k], y = landmarks.points[2 * k + 1];
    gaussian(across, x, problem.sigma, 1.0, row);
    gaussian(down, y, problem.sigma, 1.0, column);
    Doubles mass{}, horizontal_moment{}, vertical_moment{};
    for (int64_t j = 0; j < width; j += D) {
      const int64_t n = smaller(D, width - j);
      Doubles collapsed{}, weighed{};  // sum_i G_ij e_i, and times (y_i - y)
      for (int64_t i = 0; i < height; ++i) {
        const Doubles part = column[i] * load<double, double>(grad + i * width + j, n);
        collapsed += part;
        weighed += (down.centre(i) - y) * part;
      }
      const Doubles e = load<double, double>(row + j, D);
      mass += collapsed * e;
      horizontal_moment += collapsed * e * (across.centres(j) - x);
      vertical_moment += weighed * e;
    }
    store_gradient(problem, landmarks, k, total<double>(mass), total<double>(horizontal_moment),
                   total<double>(vertical_moment), d_points, d_weights);
  }
}

template <typename Real>
void backward_of_max(const HeatmapProblem& problem, const Landmarks<Real>& landmarks, const double* grad,
                     double* scratch, int64_t* winner, Real* d_points, Real* d_weights) {
  const Axis across = horizontal(problem), down = vertical(problem);
  const int64_t height = problem.height, width = problem.width;
  double* best = scratch + draw_scratch(problem);  // [H, W]
  double* sums = best + problem.cells();           // [K, 3]
  for (int64_t i = 0; i < problem.cells(); ++i) {
    winner[i] = -1;
  }
  for (int64_t i = 0; i < 3 * problem.landmarks; ++i) {
    sums[i] = 0.0;
  }
  (void)draw_into(problem, landmarks, scratch, best, winner);
  for (int64_t i = 0; i < height; ++i) {
    for (int64_t j = 0; j < width; ++j) {
      const int64_t k = winner[i * width + j];
      if (k < 0) {
        continue;
      }
      const double right = across.centre(j) - landmarks.points[2 * k];
      const double below = down.centre(i) - landmarks.points[2 * k + 1];
      const double u = right / problem.sigma, v = below / problem.sigma;
      const Doubles exponents = Doubles{} - 0.5 * (u * u + v * v);
      const double e = grad[i * width + j] * exp_of_negative(exponents)[0];
      sums[3 * k] += e;
      sums[3 * k + 1] += e * right;
      sums[3 * k + 2] += e * below;
    }
  }
  for (int64_t k = 0; k < problem.landmarks; ++k) {
    if (is_valid(landmarks, k)) {
      store_gradient(problem, landmarks, k, sums[3 * k], sums[3 * k + 1], sums[3 * k + 2], d_points, d_weights);
    }
  }
}

template <typename Real>
void heatmap_backward(const HeatmapProblem& problem, const Landmarks<Real>& landmarks, const double* grad,
                      double* scratch, int64_t* winner, Real* d_points, Real* d_weights) {
  for (int64_t k = 0; d_points && k < 2 * problem.landmarks; ++k) {
    d_points[k] = 0;
  }
  for (int64_t k = 0; d_weights && k < problem.landmarks; ++k) {
    d_weights[k] = 0;
  }
  if (problem.combine == Combine::sum) {
    backward_of_sum(problem, landmarks, grad, scratch, d_points, d_weights);
  } else {
    backward_of_max(problem, landmarks, grad, scratch, winner, d_points, d_weights);
  }
}

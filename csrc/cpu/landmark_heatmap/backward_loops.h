// The gradients of landmarks and weights from the gradient of their heatmap, in double.
// To be included by cpu/pal_loss/instances.h only, inside its namespace.

// With e_ij the Gaussian of a landmark of weight w and G_ij the gradient of the heatmap:
// dw = sum G e, dx = w / sigma^2 sum G e (x_j - x), and dy likewise.
template <typename Real>
void store_gradient(const HeatmapProblem& problem, const Landmarks<Real>& landmarks, int64_t k, double mass,
                    double moment_x, double moment_y, Real* d_points, Real* d_weights) {
  const double scale = weight_of(landmarks, k) / problem.sigma / problem.sigma;
  if (d_points) {
    d_points[2 * k] = static_cast<Real>(scale * moment_x);
    d_points[2 * k + 1] = static_cast<Real>(scale * moment_y);
  }
  if (d_weights) {
    d_weights[k] = static_cast<Real>(mass);
  }
}

// The gradients of Count valid landmarks, in one pass over `grad`.
template <int64_t Count, typename Real>
void gradients_of(const HeatmapProblem& problem, const Landmarks<Real>& landmarks, const int64_t* index,
                  const double* grad, double* scratch, Real* d_points, Real* d_weights) {
  const Axis across = horizontal(problem), down = vertical(problem);
  const int64_t height = problem.height, width = problem.width;
  const int64_t row_stride = padded(width), column_stride = padded(height);
  double* along_x = scratch;                            // [Count, padded(W)]: factors along x
  double* along_y = along_x + Count * row_stride;       // [Count, padded(H)]: factors along y
  double* centred_y = along_y + Count * column_stride;  // [Count, padded(H)]: the same times (y_i - y)

  // 1. The factors.
  for (int64_t c = 0; c < Count; ++c) {
    const double x = landmarks.points[2 * index[c]], y = landmarks.points[2 * index[c] + 1];
    gaussian(across, x, problem.sigma, 1.0, along_x + c * row_stride);
    gaussian(down, y, problem.sigma, 1.0, along_y + c * column_stride);
    for (int64_t i = 0; i < height; ++i) {
      centred_y[c * column_stride + i] = along_y[c * column_stride + i] * (down.centre(i) - y);
    }
  }

  // 2. For each vector of columns, reduce over the rows, then multiply by the factors along x.
  Doubles mass[Count] = {}, moment_x[Count] = {}, moment_y[Count] = {};
  for (int64_t j = 0; j < width; j += D) {
    const int64_t n = minimum(D, width - j);
    Doubles column_sum[Count] = {}, column_sum_dy[Count] = {};  // sum_i G_ij e_i, and times (y_i - y)
    for (int64_t i = 0; i < height; ++i) {
      const Doubles g = load<double, double>(grad + i * width + j, n);
      for (int64_t c = 0; c < Count; ++c) {
        column_sum[c] += along_y[c * column_stride + i] * g;
        column_sum_dy[c] += centred_y[c * column_stride + i] * g;
      }
    }
    for (int64_t c = 0; c < Count; ++c) {
      const double x = landmarks.points[2 * index[c]];
      const Doubles e = load<double, double>(along_x + c * row_stride + j, D);
      mass[c] += column_sum[c] * e;
      moment_x[c] += column_sum[c] * e * (across.centres(j) - x);
      moment_y[c] += column_sum_dy[c] * e;
    }
  }
  for (int64_t c = 0; c < Count; ++c) {
    store_gradient(problem, landmarks, index[c], horizontal_sum<double>(mass[c]), horizontal_sum<double>(moment_x[c]),
                   horizontal_sum<double>(moment_y[c]), d_points, d_weights);
  }
}

template <typename Real>
void backward_of_sum(const HeatmapProblem& problem, const Landmarks<Real>& landmarks, const double* grad,
                     double* scratch, Real* d_points, Real* d_weights) {
  constexpr int64_t BLOCK = 4;
  int64_t index[BLOCK], count = 0;
  for (int64_t k = 0; k < problem.landmarks; ++k) {
    if (!is_valid(landmarks, k)) {
      continue;
    }
    index[count++] = k;
    if (count == BLOCK) {
      gradients_of<BLOCK>(problem, landmarks, index, grad, scratch, d_points, d_weights);
      count = 0;
    }
  }
  for (int64_t c = 0; c < count; ++c) {
    gradients_of<1>(problem, landmarks, index + c, grad, scratch, d_points, d_weights);
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

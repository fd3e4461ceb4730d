// The kernels of the heatmap and the loss on the CPU, compiled once per instruction set.
//
// Every kernel processes (part of) one sample on the calling thread. How the operators partition the work depends on
// shapes alone, so that results do not depend on the number of threads.
#pragma once

#include <cstdint>

#include "problem.h"

namespace pal_fast::cpu {

// The landmarks of one sample; Real is float or double.
template <typename Real>
struct Landmarks {
  const Real* points;   // [K, 2]
  const bool* visible;  // [K] or null
  const Real* weights;  // [K] or null
};

template <typename Real>
struct HeatmapKernels {
  // Writes the heatmap before normalisation to out [H, W]. Returns whether any landmark is valid; if not, out is 0.
  bool (*draw)(const HeatmapProblem&, const Landmarks<Real>&, double* scratch, double* out);
  // Computes d_points [K, 2] and d_weights [K], either of which may be null, from grad [H, W], the gradient of the
  // heatmap before normalisation. winner: scratch [H, W] for Combine::max.
  void (*backward)(const HeatmapProblem&, const Landmarks<Real>&, const double* grad, double* scratch, int64_t* winner,
                   Real* d_points, Real* d_weights);
};

// Landmarks whose factors are in the scratch at once.
inline constexpr int64_t LANDMARK_BLOCK = 64;

// Arrays are padded to whole vectors of every instruction set.
[[nodiscard]] constexpr int64_t padded(int64_t length) { return (length + 7) / 8 * 8; }

// Doubles of scratch for `draw` and for `backward`.
[[nodiscard]] constexpr int64_t draw_scratch(const HeatmapProblem& problem) {
  return LANDMARK_BLOCK * (padded(problem.height) + padded(problem.width));
}
[[nodiscard]] constexpr int64_t backward_scratch(const HeatmapProblem& problem) {
  return draw_scratch(problem) + problem.cells() + 3 * problem.landmarks;
}

// The maximum number of channels of a call of `channel_moments`.
inline constexpr int64_t CHANNEL_BLOCK = 128;

// Moments of one channel's attribution over the cells: mean, sum (a - mean)^2 and sum (a - mean) * q, with q the plane.
// A float64 layer outside 1e-150 .. 1e150 exceeds the range of the squares and counts as flat.
struct Moments {
  double mean;
  double square;
  double product;
};

// A part of a sample: channels [first, last) of a contiguous layer, cells [first, last) of a channels_last one.
struct Range {
  int64_t first;
  int64_t last;
};

// The derivative of the loss with respect to the attribution of one sample. T is double for a float64 layer, else
// float.
template <typename T>
struct Derivative {
  T scale;                // grad_loss * factor; 0: the layer is not read
  const T* plane;         // [H, W]: dP/da (Grouping::map) or q
  const T* coefficients;  // [G, 3]: (A, B, mu), dP/da = A * (q + B * (a - mu)); unused for Grouping::map
  T* scratch;             // gradients_scratch()
};

// Elements of scratch for `gradients`.
[[nodiscard]] constexpr int64_t gradients_scratch(const LossProblem& problem) {
  constexpr int64_t longest_vector = 64;
  return problem.cells() + 2 * longest_vector + 3 * problem.groups();
}

// f, g, df and dg point to the sample, [C, H, W] or [H, W, C]. Tensors that the attribution does not read are null.
struct LossKernels {
  // map [H, W] = the sum of the attribution over the channels of `range`, at all cells (contiguous), or over the first
  // n channels, at the cells of `range` only (channels_last).
  void (*accumulate_map)(const LossProblem&, Storage, const void* f, const void* g, Range range, double* map);
  // moments [last - first] of at most CHANNEL_BLOCK channels over all cells. plane: [H, W] of T.
  void (*channel_moments)(const LossProblem&, Storage, const void* f, const void* g, const void* plane, Range channels,
                          Moments* moments);
  // df and dg (either may be null) of `range`; `derivative` is a Derivative<T>. Channels from n on get zeros. stream:
  // by non-temporal stores.
  void (*gradients)(const LossProblem&, Storage, const void* f, const void* g, const void* derivative, Range range,
                    bool stream, void* df, void* dg);
};

struct Kernels {
  HeatmapKernels<float> heatmap_float;
  HeatmapKernels<double> heatmap_double;
  LossKernels loss;
};

// The same source compiled for three instruction sets.
namespace baseline {
extern const Kernels kernels;
}
#if defined(__x86_64__) && defined(__GNUC__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

// The instance for this processor.
[[nodiscard]] const Kernels& kernels();

template <typename Real>
[[nodiscard]] const HeatmapKernels<Real>& heatmap_kernels() {
  if constexpr (sizeof(Real) == sizeof(double)) {
    return kernels().heatmap_double;
  } else {
    return kernels().heatmap_float;
  }
}

}  // namespace pal_fast::cpu

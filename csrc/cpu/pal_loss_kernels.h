// The inner loops of the heatmap and the loss on the CPU, compiled once per instruction set.
//
// Every kernel works on one sample, on one thread, and its result depends on its arguments only: how the work
// is cut (in landmark_heatmap.cpp and pal_loss.cpp) depends on shapes alone, so results do not depend on the number
// of threads.
#pragma once

#include <cstdint>

#include "../problem.h"
#include "storage.h"

namespace pal_fast::cpu {

// The landmarks of one sample. [K, 2], [K] or null, [K] or null; Real is float or double.
template <typename Real>
struct Landmarks {
  const Real* points;
  const bool* visible;
  const Real* weights;
};

template <typename Real>
struct HeatmapKernels {
  // out [H, W] = the heatmap before it is normalised. False: no landmark is valid, and all of it is 0.
  bool (*draw)(const HeatmapProblem&, const Landmarks<Real>&, double* scratch, double* out);
  // From grad [H, W], of the heatmap before it was normalised: d_points [K, 2] and d_weights [K], either null.
  // winner: [H, W] of scratch, used by Combine::max.
  void (*backward)(const HeatmapProblem&, const Landmarks<Real>&, const double* grad, double* scratch, int64_t* winner,
                   Real* d_points, Real* d_weights);
};

// Landmarks whose Gaussians are held at once.
inline constexpr int64_t LANDMARK_BLOCK = 64;

// Rows of vectors are this long, whatever the instruction set.
[[nodiscard]] constexpr int64_t padded(int64_t length) { return (length + 7) / 8 * 8; }

// How many doubles `draw` and `backward` use as scratch.
[[nodiscard]] constexpr int64_t draw_scratch(const HeatmapProblem& problem) {
  return LANDMARK_BLOCK * (padded(problem.height) + padded(problem.width));
}
[[nodiscard]] constexpr int64_t backward_scratch(const HeatmapProblem& problem) {
  return draw_scratch(problem) + problem.cells() + 3 * problem.landmarks;
}

// How many channels `channel_moments` takes at most.
inline constexpr int64_t CHANNEL_BLOCK = 128;

// Of one channel's attribution over the cells: mean, sum (a - mean)^2 and sum (a - mean) * q, q the plane. A float64
// layer beyond 1e-150 .. 1e150 leaves the range of the squares and counts as flat.
struct Moments {
  double mean;
  double square;
  double product;
};

// Part of a sample: channels [first, last) of a contiguous layer, or cells [first, last) of a channels_last one.
struct Range {
  int64_t first;
  int64_t last;
};

// The derivative of the loss by the attribution, of one sample. T is float, or double for a float64 layer.
template <typename T>
struct Derivative {
  T scale;                // grad_loss * factor; 0: the layer is not read
  const T* plane;         // [H, W]: dP/da (Grouping::map) or q
  const T* coefficients;  // [G, 3]: (A, B, mu), dP/da = A * (q + B * (a - mu)); unused for Grouping::map
  T* scratch;             // gradients_scratch()
};

// How many T `gradients` uses as scratch.
[[nodiscard]] constexpr int64_t gradients_scratch(const LossProblem& problem) {
  constexpr int64_t longest_vector = 64;
  return problem.cells() + 2 * longest_vector + 3 * problem.groups();
}

// f, g, df, dg point to the sample, [C, H, W] or [H, W, C]. What the attribution does not read is null.
struct LossKernels {
  // map [H, W] = sum of the attribution over the channels of `range` (contiguous, all cells written),
  // or over the first n channels for the cells of `range` (channels_last, those cells written).
  void (*accumulate_map)(const LossProblem&, Storage, const void* f, const void* g, Range range, double* map);
  // The moments of channels [first, last), at most CHANNEL_BLOCK, over all cells. plane: [H, W] of type T.
  void (*channel_moments)(const LossProblem&, Storage, const void* f, const void* g, const void* plane, Range channels,
                          Moments* moments);
  // df and dg (either may be null) of `range`; `derivative` is a Derivative<T>. Channels from n on get zero.
  // stream: write past the cache.
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

// Those for this processor.
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

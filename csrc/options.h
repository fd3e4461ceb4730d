// The options of the specification, in the order of pal_fast/constants.py, which operators take as integers; and how
// layers are stored.
#pragma once

#include <cstdint>

namespace pal_fast {

enum class Combine : int64_t { sum, max };
enum class Normalize : int64_t { none, peak, sum };
enum class Attribution : int64_t { grad_input, grad, activation };
enum class Grouping : int64_t { map, all, each };
enum class Score : int64_t { pearson, cross_correlation };
enum class Scale : int64_t { sum, mean, unit };
enum class Reduction : int64_t { mean, sum, none };

// The number of choices of each option.
template <typename Choice>
inline constexpr int64_t choices = 3;
template <>
inline constexpr int64_t choices<Combine> = 2;
template <>
inline constexpr int64_t choices<Score> = 2;

// Memory format of a layer: channels outermost (NCHW) or innermost (NHWC).
enum class Layout : int64_t { contiguous, channels_last };

// Storage type of a layer's elements. The compute type is double for float64 and float for all others.
enum class Storage { float16, bfloat16, float32, float64 };

// A group is flat if its standard deviation is at most this fraction of its root mean square.
inline constexpr double FLAT_TOLERANCE = 1e-5;

}  // namespace pal_fast

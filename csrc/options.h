// The options of the specification, in the order of pal_fast/constants.py; operators take them as integers.
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

// A group is flat if its standard deviation is at most this fraction of its root mean square.
inline constexpr double FLAT_TOLERANCE = 1e-5;

}  // namespace pal_fast

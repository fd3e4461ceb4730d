// The sizes of a warp and of the largest blocks, for kernels and for the host's plans.
#pragma once

namespace pal_fast::cuda {

inline constexpr int WARP_SIZE = 32;
inline constexpr int MAX_BLOCK_THREADS = 256;

}  // namespace pal_fast::cuda

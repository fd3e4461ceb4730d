// The number of threads of a warp, for kernels and for the host's plans.
#pragma once

namespace pal_fast::cuda {

inline constexpr int WARP_SIZE = 32;

}  // namespace pal_fast::cuda

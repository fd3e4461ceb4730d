// Whether the kernels can run on a device.
#pragma once

#include <string>

namespace pal_fast::cuda {

// "" if they can, otherwise the reason.
[[nodiscard]] std::string why_unusable(int device);

}  // namespace pal_fast::cuda

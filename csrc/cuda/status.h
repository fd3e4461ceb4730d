// Whether the kernels can run on a device.
#pragma once

#include <string>

namespace pal_fast::cuda {

// "" if they can, otherwise the reason. `built_for`: the extension's architectures, for the message.
[[nodiscard]] std::string why_unusable(int device, const std::string& built_for);

}  // namespace pal_fast::cuda

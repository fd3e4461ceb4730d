// Whether the kernels can run on a device.
#pragma once

#include <string>

namespace pal_fast::cuda {

// "" if the driver serves the extension's runtime and has such a device, otherwise the reason. Touches no device.
[[nodiscard]] std::string why_no_device(int device);

// "" if the extension has kernels for the device, which is the current one, otherwise the reason. `built_for`: the
// extension's architectures, for the message. Throws std::runtime_error where that is not settled: memory may be short
// for now.
[[nodiscard]] std::string why_no_kernel(int device, const std::string& built_for);

}  // namespace pal_fast::cuda

// Whether the kernels can run on a device.
#pragma once

#include <string>

namespace pal_fast::cuda {

// "" if the driver supports the extension's runtime and the device exists, otherwise the reason. Does not access the
// device.
[[nodiscard]] std::string why_no_device(int device);

// "" if the extension has kernels for the device, which must be the current one, otherwise the reason. `built_for`: the
// extension's architectures, for the message. Throws std::runtime_error on transient errors, such as lack of memory.
[[nodiscard]] std::string why_no_kernel(int device, const std::string& built_for);

}  // namespace pal_fast::cuda

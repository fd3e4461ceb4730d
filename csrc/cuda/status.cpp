// The operator that reports whether the kernels can run on a CUDA device; defined in builds with CUDA only. It returns
// permanent reasons, and raises transient ones: a device in a bad state, or out of memory.
#include "cuda/status.h"

#include <torch/csrc/stable/library.h>

#include <cstdint>

#include "cuda/device.h"

namespace {

std::string cuda_status(int64_t index) {
  const auto device = static_cast<int32_t>(index);
  const std::string reason = pal_fast::cuda::why_no_device(device);
  if (!reason.empty()) {
    return reason;
  }
  const pal_fast::cuda::CudaDeviceGuard current(device);
  return pal_fast::cuda::why_no_kernel(device, PAL_FAST_CUDA_ARCHITECTURES);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pal_fast, library) { library.def("cuda_status(int device) -> str"); }

STABLE_TORCH_LIBRARY_IMPL(pal_fast, CompositeExplicitAutograd, library) {
  library.impl("cuda_status", TORCH_BOX(&cuda_status));
}

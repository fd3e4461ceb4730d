// What every operator needs of the device and of PyTorch before it launches: the limit of sizes, device guard, stream,
// device properties, arrival counters.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <limits>

#include "tensors.h"

namespace pal_fast::cuda {

// Checks a number of cells or channels, which kernels count in 32 bits; the limit leaves room for the last step of a
// loop past the end. `what` is the subject of the message.
template <typename... What>
void check_count(int64_t count, const What&... what) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max() / 2;
  STD_TORCH_CHECK(count <= most, what..., " is too large for the CUDA kernels, which count up to ", most);
}

// Makes `device` the current one for its scope, for PyTorch's CUDA runtime and for the extension's own, which is linked
// statically. The latter's calls and launches need it; PyTorch allocates on the device of a given tensor without.
class CudaDeviceGuard {
 public:
  explicit CudaDeviceGuard(int32_t device);

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

// PyTorch's current stream on the device, a cudaStream_t.
[[nodiscard]] void* current_stream(int32_t device);

[[nodiscard]] int multiprocessor_count(int32_t device);

// Whether the device runs kernels compiled for sm_90a (wgmma.cuh).
[[nodiscard]] bool supports_wgmma(int32_t device);

// `count` arrival counters (is_last_block), zero before and after every launch; for launches on `stream` only. Keep the
// object alive until the launch is queued.
struct Tickets {
  unsigned* counts = nullptr;
  OptionalTensor owner;
};
[[nodiscard]] Tickets tickets(const Tensor& like, int64_t count, void* stream);

}  // namespace pal_fast::cuda

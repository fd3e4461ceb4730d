// What every operator needs of the device and of PyTorch before it launches: device guard, stream, device properties,
// workspace.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <cstdint>

#include "checks.h"
#include "cuda/storage.h"

namespace pal_fast::cuda {

// Makes `device` the current one for its scope, for PyTorch's CUDA runtime and for the extension's own, which is linked
// statically.
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

[[nodiscard]] Storage storage_of(ScalarType dtype);

// `count` arrival counters (is_last_block), zero before and after every launch; for launches on `stream` only. Keep the
// object alive until the launch is queued.
struct Tickets {
  unsigned* counts = nullptr;
  OptionalTensor owner;
};
[[nodiscard]] Tickets tickets(const Tensor& like, int64_t count, void* stream);

// The tensor's data, or null if it is absent or empty.
[[nodiscard]] const void* data_or_null(const OptionalTensor& tensor);
[[nodiscard]] void* mutable_data_or_null(const OptionalTensor& tensor);

}  // namespace pal_fast::cuda

// What every operator asks of the device and of PyTorch before it launches.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <cstdint>

#include "../checks.h"
#include "storage.h"

namespace pal_fast::cuda {

// Makes a device the current one for as long as it lives. The extension has a CUDA runtime of its own, linked into it,
// beside PyTorch's; each must be told.
class OnDevice {
 public:
  explicit OnDevice(int32_t device);

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

// PyTorch's current stream, a cudaStream_t.
[[nodiscard]] void* current_stream(int32_t device);

[[nodiscard]] int processors_of(int32_t device);

// Whether kernels that were compiled for sm_90a run on it (warpgroup.cuh).
[[nodiscard]] bool has_warpgroup_products(int32_t device);

[[nodiscard]] Storage storage_of(ScalarType dtype);

// `count` zeros for kernels that count blocks and leave the counts at zero; for launches on `stream` only. To be held
// until the launch is queued.
struct Tickets {
  unsigned* counts = nullptr;
  OptionalTensor owner;
};
[[nodiscard]] Tickets tickets(const Tensor& like, int64_t count, void* stream);

// Null if the tensor is absent or empty.
[[nodiscard]] const void* read(const OptionalTensor& tensor);
[[nodiscard]] void* written(const OptionalTensor& tensor);

}  // namespace pal_fast::cuda

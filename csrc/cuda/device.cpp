// What every operator asks of the device and of PyTorch before it launches.
#include "device.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <map>
#include <mutex>
#include <utility>

#include "capture_mode.h"

namespace pal_fast::cuda {
namespace {

// The error is said here, and not left for the next launch to take for its own.
template <typename... What>
void check(cudaError_t error, const What&... what) {
  if (error != cudaSuccess) {
    cudaGetLastError();
    STD_TORCH_CHECK(false, what..., ": ", cudaGetErrorString(error));
  }
}

[[nodiscard]] int attribute(cudaDeviceAttr name, int32_t device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, device), "device ", device);
  return value;
}

// Device memory outside PyTorch's allocator; null if PyTorch's cache, or another process, has left none.
[[nodiscard]] unsigned* allocate(int64_t count) {
  const RelaxedCapture relaxed;
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, static_cast<size_t>(count) * sizeof(unsigned));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  check(error, "allocating tickets");
  return static_cast<unsigned*>(memory);
}

// By a command, or in a CUDA graph a node, of its own: not a kernel launch.
void zero(unsigned* counts, int64_t count, cudaStream_t stream) {
  check(cudaMemsetAsync(counts, 0, static_cast<size_t>(count) * sizeof(unsigned), stream), "zeroing tickets");
}

// Kept per device and stream, so that only a stream's first call pays for zeroing: launches on one stream follow each
// other, and each leaves zeros behind. Kept memory is not of PyTorch's allocator: the first call may be the warm-up of
// torch.compile's graphs, whose memory pool must not outlive it. A stream's tickets are never freed (16 KiB, and twice
// that for every doubling of the largest batch). Null if there is no memory for them.
[[nodiscard]] unsigned* kept_tickets(int32_t device, int64_t count, cudaStream_t stream) {
  struct Kept {
    unsigned* counts = nullptr;
    int64_t count = 0;
  };
  static std::mutex mutex;
  static std::map<std::pair<int32_t, cudaStream_t>, Kept> of_stream;
  const std::lock_guard<std::mutex> lock(mutex);
  Kept& kept = of_stream[{device, stream}];
  if (kept.count < count) {
    constexpr int64_t LEAST = 4096;
    int64_t size = LEAST;
    while (size < count) {
      size *= 2;
    }
    unsigned* counts = allocate(size);
    if (counts == nullptr) {
      return nullptr;
    }
    zero(counts, size, stream);
    kept = {counts, size};
  }
  return kept.counts;
}

}  // namespace

OnDevice::OnDevice(int32_t device) : guard_(device) { check(cudaSetDevice(device), "making a device current"); }

// Looked up at run time, because a CPU-only PyTorch does not have the symbol.
void* current_stream(int32_t device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const auto function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(function != nullptr, "this PyTorch has no CUDA streams (libtorch_cuda.so is not loaded)");
  void* stream = nullptr;
  STD_TORCH_CHECK(function(device, &stream) == AOTI_TORCH_SUCCESS, "the current CUDA stream of device ", device,
                  " cannot be had");
  return stream;
}

int processors_of(int32_t device) { return attribute(cudaDevAttrMultiProcessorCount, device); }

bool has_warpgroup_products(int32_t device) {
  return attribute(cudaDevAttrComputeCapabilityMajor, device) == 9 &&
         attribute(cudaDevAttrComputeCapabilityMinor, device) == 0;
}

Storage storage_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Half:
      return Storage::float16;
    case ScalarType::BFloat16:
      return Storage::bfloat16;
    case ScalarType::Double:
      return Storage::float64;
    default:
      return Storage::float32;
  }
}

// A CUDA graph gets its own, zeroed by a node of the graph: its replays may run beside other work of the stream that it
// was captured on, and the memory lies in the graph's pool, where only the graph's later nodes may use it again.
// So does a call that finds no memory to keep: PyTorch's allocator frees cached memory before it gives up, and only the
// stream's later work may use the call's again.
Tickets tickets(const Tensor& like, int64_t count, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(on, &capture), "the stream's capture status");
  if (capture == cudaStreamCaptureStatusNone) {
    if (unsigned* counts = kept_tickets(like.get_device_index(), count, on)) {
      return {counts, std::nullopt};
    }
  }
  const Tensor owner = torch::stable::new_empty(like, {count}, ScalarType::Int);
  Tickets taken{static_cast<unsigned*>(owner.mutable_data_ptr()), owner};
  zero(taken.counts, count, on);
  return taken;
}

const void* read(const OptionalTensor& tensor) {
  return tensor && tensor->numel() > 0 ? tensor->const_data_ptr() : nullptr;
}

void* written(const OptionalTensor& tensor) {
  return tensor && tensor->numel() > 0 ? tensor->mutable_data_ptr() : nullptr;
}

}  // namespace pal_fast::cuda

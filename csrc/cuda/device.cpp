// Device guard, stream, device properties and arrival counters of the CUDA operators.
#include "cuda/device.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <map>
#include <mutex>
#include <utility>

#include "cuda/capture_mode.h"

namespace pal_fast::cuda {
namespace {

// Raises the error, and clears it so that the next launch does not report it as its own.
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

// Device memory outside PyTorch's caching allocator; null if PyTorch's cache or another process has left none.
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

// Queues a memset (in a CUDA graph: a memset node), not a kernel.
void zero(unsigned* counts, int64_t count, cudaStream_t stream) {
  check(cudaMemsetAsync(counts, 0, static_cast<size_t>(count) * sizeof(unsigned), stream), "zeroing tickets");
}

// Cached per device and stream, so that only a stream's first call pays for zeroing: launches on one stream run in
// order, and each leaves zeros behind. The memory does not come from PyTorch's allocator: the first call may be the
// warm-up of torch.compile's CUDA graphs, and would then take memory from a pool that must not outlive it. It is never
// freed (16 KiB a stream, doubled as often as the largest batch demands). Null if out of memory.
[[nodiscard]] unsigned* cached_tickets(int32_t device, int64_t count, cudaStream_t stream) {
  struct Cached {
    unsigned* counts = nullptr;
    int64_t count = 0;
  };
  static std::mutex mutex;
  static std::map<std::pair<int32_t, cudaStream_t>, Cached> cache;
  const std::lock_guard<std::mutex> lock(mutex);
  Cached& cached = cache[{device, stream}];
  if (cached.count < count) {
    constexpr int64_t MIN_COUNT = 4096;
    int64_t size = MIN_COUNT;
    while (size < count) {
      size *= 2;
    }
    unsigned* counts = allocate(size);
    if (counts == nullptr) {
      return nullptr;
    }
    zero(counts, size, stream);
    cached = {counts, size};
  }
  return cached.counts;
}

}  // namespace

CudaDeviceGuard::CudaDeviceGuard(int32_t device) : guard_(device) {
  check(cudaSetDevice(device), "making a device current");
}

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

int multiprocessor_count(int32_t device) { return attribute(cudaDevAttrMultiProcessorCount, device); }

bool supports_wgmma(int32_t device) {
  return attribute(cudaDevAttrComputeCapabilityMajor, device) == 9 &&
         attribute(cudaDevAttrComputeCapabilityMinor, device) == 0;
}

// A CUDA graph gets counters of its own, zeroed by a memset node: its replays may run concurrently with other work of
// the stream that it was captured on. They lie in the graph's memory pool, which only later nodes of the graph reuse.
// A call without cached counters, for want of memory, allocates its own, too: PyTorch's allocator releases its cache
// before it gives up, and hands the memory on to later work of the same stream only.
Tickets tickets(const Tensor& like, int64_t count, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(on, &capture), "the stream's capture status");
  if (capture == cudaStreamCaptureStatusNone) {
    if (unsigned* counts = cached_tickets(like.get_device_index(), count, on)) {
      return {counts, std::nullopt};
    }
  }
  const Tensor owner = torch::stable::new_empty(like, {count}, ScalarType::Int);
  Tickets taken{static_cast<unsigned*>(owner.mutable_data_ptr()), owner};
  zero(taken.counts, count, on);
  return taken;
}

}  // namespace pal_fast::cuda

// The CUDA runtime functions that the extension calls, on the virtual GPU, and the interface for Python.
//
// Built as libtorch_cuda.so, the name under which the extension looks up PyTorch's current stream.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "machine.h"

namespace {

using namespace virtual_gpu;

std::mutex mutex;
std::map<const void*, std::string> names;            // of kernels, by their functions on the host
std::vector<std::map<std::string, Kernel>> modules;  // what was parsed; the first is the extension's
std::vector<std::string> launched;                   // names, since they were last asked for
std::string failure;                                 // of the last launch that failed
cudaError_t last_error = cudaSuccess;
Launch configuration;  // of the launch that is being made
int processors = 4;

void execute(Launch launch, const std::string& name) {
  const std::lock_guard<std::mutex> lock(mutex);
  launched.push_back(name);
  machine().run(launch);
}

cudaError_t failed(const std::exception& error) {
  failure = error.what();
  last_error = cudaErrorLaunchFailure;
  return last_error;
}

}  // namespace

extern "C" {

// Functions called by the launch code that nvcc generates.
void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  names[function] = name;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 threads, size_t shared, CUstream_st*) {
  configuration.grid[0] = grid.x, configuration.grid[1] = grid.y, configuration.grid[2] = grid.z;
  configuration.threads[0] = threads.x, configuration.threads[1] = threads.y, configuration.threads[2] = threads.z;
  configuration.dynamic_shared_bytes = static_cast<int64_t>(shared);
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* threads, size_t* shared, void* stream) {
  *grid = dim3(configuration.grid[0], configuration.grid[1], configuration.grid[2]);
  *threads = dim3(configuration.threads[0], configuration.threads[1], configuration.threads[2]);
  *shared = static_cast<size_t>(configuration.dynamic_shared_bytes);
  *static_cast<void**>(stream) = nullptr;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t function, dim3 grid, dim3 threads, void** arguments, size_t shared,
                               cudaStream_t) {
  try {
    const std::string& name = names.at(function);
    if (modules.empty()) {
      throw std::runtime_error("the virtual GPU was given no PTX");
    }
    const auto kernel = modules[0].find(name);
    if (kernel == modules[0].end()) {
      throw std::runtime_error("the PTX has no kernel " + name);
    }
    if (grid.x == 0 || threads.x * threads.y * threads.z > 1024 || shared > 48 * 1024) {
      throw std::runtime_error("a launch that a GPU refuses: " + name);
    }
    Launch launch{
        &kernel->second, {grid.x, grid.y, grid.z}, {threads.x, threads.y, threads.z}, static_cast<int64_t>(shared), {}};
    launch.parameters.resize(static_cast<size_t>(kernel->second.parameter_bytes));
    for (size_t p = 0; p < kernel->second.parameters.size(); ++p) {
      const Parameter& parameter = kernel->second.parameters[p];
      std::memcpy(launch.parameters.data() + parameter.offset, arguments[p], static_cast<size_t>(parameter.bytes));
    }
    execute(launch, name);
    return cudaSuccess;
  } catch (const std::exception& error) {
    return failed(error);
  }
}

// CUDA runtime API.
cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
const char* cudaGetErrorString(cudaError_t) { return failure.c_str(); }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount      ? processors
           : attribute == cudaDevAttrComputeCapabilityMajor ? 9
                                                            : 0;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  *attributes = {};
  return names.contains(function) ? cudaSuccess : cudaErrorInvalidDeviceFunction;
}
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = std::malloc(bytes);
  std::memset(*memory, 0xff, bytes);
  const std::lock_guard<std::mutex> lock(mutex);
  machine().memory.allocate(*memory, static_cast<int64_t>(bytes));
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

// PyTorch's symbols.
int aoti_torch_get_current_cuda_stream(int, void** stream) {
  *stream = nullptr;
  return 0;
}

// The interface for Python. Functions that can fail return an error message, or "".
const char* virtual_gpu_failure() { return failure.c_str(); }
// The number of the module, or -1.
int virtual_gpu_load(const char* ptx) {
  try {
    const std::lock_guard<std::mutex> lock(mutex);
    modules.push_back(parse(ptx));
    return static_cast<int>(modules.size()) - 1;
  } catch (const std::exception& error) {
    failure = error.what();
    return -1;
  }
}
void virtual_gpu_allocate(const void* memory, int64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex);
  machine().memory.allocate(memory, bytes);
}
void virtual_gpu_free(const void* memory) {
  const std::lock_guard<std::mutex> lock(mutex);
  machine().memory.free(memory);
}
void virtual_gpu_seed(unsigned seed) { machine().random.seed(seed); }
void virtual_gpu_processors(int count) { processors = count; }
// Turns counting on or off for the next launches, and returns the traffic counted so far (TrafficCounter::report).
const char* virtual_gpu_traffic(int counting) {
  static std::string lines;
  const std::lock_guard<std::mutex> lock(mutex);
  machine().traffic.counting = counting != 0;
  lines = machine().traffic.report();
  return lines.c_str();
}
int virtual_gpu_parameter_bytes(int module, const char* name) {
  const auto kernel = modules.at(static_cast<size_t>(module)).find(name);
  return kernel == modules[static_cast<size_t>(module)].end() ? -1 : static_cast<int>(kernel->second.parameter_bytes);
}
int virtual_gpu_launch(int module, const char* name, const unsigned* grid, unsigned threads, int64_t shared,
                       const void* parameters) {
  try {
    const Kernel& kernel = modules.at(static_cast<size_t>(module)).at(name);
    const auto* bytes = static_cast<const unsigned char*>(parameters);
    execute({&kernel, {grid[0], grid[1], grid[2]}, {threads, 1, 1}, shared, {bytes, bytes + kernel.parameter_bytes}},
            name);
    return 0;
  } catch (const std::exception& error) {
    failure = error.what();
    return 1;
  }
}
// The names of the kernels launched since the last call, one per line.
const char* virtual_gpu_launched() {
  static std::string lines;
  const std::lock_guard<std::mutex> lock(mutex);
  lines.clear();
  for (const std::string& name : launched) {
    lines += (lines.empty() ? "" : "\n") + name;
  }
  launched.clear();
  return lines.c_str();
}
}

// Whether the kernels can run on a device, determined by loading an empty kernel.
#include <cuda_runtime.h>

#include <stdexcept>

#include "cuda/capture_mode.h"
#include "cuda/status.h"

namespace pal_fast::cuda {
namespace {

__global__ void probe_kernel() {}

// 13000 -> "13.0"
[[nodiscard]] std::string release(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

std::string why_no_device(int device) {
  int runtime = 0, driver = 0;
  cudaRuntimeGetVersion(&runtime);
  cudaDriverGetVersion(&driver);
  if (driver == 0) {
    return "no NVIDIA driver is installed";
  }
  // Minor-version compatibility: any driver of the same major release suffices, as kernels are present as machine code.
  if (driver / 1000 < runtime / 1000) {
    return "the driver is too old: it serves CUDA " + release(driver) + ", the extension was built with CUDA " +
           release(runtime);
  }
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();  // clears the error, which is reported here
  if (error != cudaSuccess) {
    return cudaGetErrorString(error);
  }
  if (device < 0 || device >= count) {
    return "there is no device " + std::to_string(device) + ", only " + std::to_string(count);
  }
  return "";
}

std::string why_no_kernel(int device, const std::string& built_for) {
  const RelaxedCapture relaxed;
  cudaFuncAttributes attributes{};
  const cudaError_t error = cudaFuncGetAttributes(&attributes, probe_kernel);
  cudaGetLastError();
  if (error == cudaSuccess) {
    return "";
  }
  const bool permanent = error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
                         error == cudaErrorUnsupportedPtxVersion || error == cudaErrorInvalidPtx;
  if (!permanent) {
    throw std::runtime_error("the kernels cannot be loaded on device " + std::to_string(device) + ": " +
                             cudaGetErrorString(error));
  }
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return "no kernel for a GPU of compute capability " + std::to_string(major) + "." + std::to_string(minor) +
         " in an extension built for " + built_for + " (" + cudaGetErrorString(error) + ")";
}

}  // namespace pal_fast::cuda

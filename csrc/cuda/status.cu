// Whether the kernels can run on a device: asked of the driver, by way of a kernel that does nothing.
#include <cuda_runtime.h>

#include <stdexcept>

#include "capture_mode.h"
#include "status.h"

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
  // Within a major release any driver serves; kernels are there as machine code, so an older one need not compile PTX.
  if (driver / 1000 < runtime / 1000) {
    return "the driver is too old: it serves CUDA " + release(driver) + ", the extension was built with CUDA " +
           release(runtime);
  }
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();  // what was found is said, not left for the next call to stumble over
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
  const bool settled = error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
                       error == cudaErrorUnsupportedPtxVersion || error == cudaErrorInvalidPtx;
  if (!settled) {
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

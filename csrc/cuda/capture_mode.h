// The stream capture mode of the calling thread.
#pragma once

#include <cuda_runtime_api.h>

namespace pal_fast::cuda {

// Scope in which the calling thread may make calls such as cudaMalloc or lazy module loading, which in the default mode
// invalidate a CUDA graph capture under way in any thread. PyTorch guards its cudaMalloc likewise.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace pal_fast::cuda

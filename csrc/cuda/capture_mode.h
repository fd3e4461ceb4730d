// What a thread may do while a CUDA graph is captured.
#pragma once

#include <cuda_runtime_api.h>

namespace pal_fast::cuda {

// While it lives, the thread may allocate and load code, which by default would break a capture under way in any
// thread. PyTorch does the same around cudaMalloc.
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

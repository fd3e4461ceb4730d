// csrc/cuda/device.cpp with a CUDA runtime of the test's own in the CPU's memory, which does what its arguments say:
//
//   malloc=ERROR, memset=ERROR, attribute=ERROR   from now on the function fails with this cudaError_t; 0: it works
//   capture=0|1                                   whether streams are being captured
//   tickets=STREAM,COUNT                          calls tickets(); the counts are then made dirty, as by another kernel
//                                                 where PyTorch owns them
//   processors                                    calls multiprocessor_count()
//   count=NUMBER                                  calls check_count()
//
// Each call prints a line: "kept" or "owned", the counts' address, whether they were zero, and the calls of cudaMalloc
// and cudaMemsetAsync so far; or what was thrown. Then comes the error that the next launch would find.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

#include "cuda/device.h"

namespace {

cudaError_t of_malloc = cudaSuccess, of_memset = cudaSuccess, of_attribute = cudaSuccess, last = cudaSuccess;
bool capturing = false;
int mallocs = 0, memsets = 0;

// Like the runtime, which remembers what failed until it is asked.
cudaError_t returned(cudaError_t error) {
  if (error != cudaSuccess) {
    last = error;
  }
  return error;
}

void call_tickets(const char* stream_and_count) {
  char* comma = nullptr;
  const long stream = std::strtol(stream_and_count, &comma, 10), count = std::strtol(comma + 1, nullptr, 10);
  const auto like = torch::stable::empty({1}, pal_fast::ScalarType::Float);
  const auto tickets = pal_fast::cuda::tickets(like, count, reinterpret_cast<void*>(stream));
  const bool zeros = std::all_of(tickets.counts, tickets.counts + count, [](unsigned value) { return value == 0; });
  std::printf("%s %p %s %d %d", tickets.owner ? "owned" : "kept", static_cast<void*>(tickets.counts),
              zeros ? "zeros" : "dirty", mallocs, memsets);
  if (tickets.owner) {
    std::fill(tickets.counts, tickets.counts + count, 7u);
  }
}

}  // namespace

extern "C" {

cudaError_t cudaGetLastError() {
  const cudaError_t error = last;
  last = cudaSuccess;
  return error;
}
const char* cudaGetErrorString(cudaError_t) { return "as told"; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 132;
  return returned(of_attribute);
}
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  mallocs += 1;
  if (of_malloc == cudaSuccess) {
    *memory = std::malloc(bytes);
    std::memset(*memory, 0xff, bytes);
  }
  return returned(of_malloc);
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  memsets += 1;
  if (of_memset == cudaSuccess) {
    std::memset(memory, value, bytes);
  }
  return returned(of_memset);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
}

int main(int count, char** arguments) {
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    const std::string what = argument.substr(0, argument.find('='));
    const char* value = arguments[i] + std::min(argument.size(), what.size() + 1);
    const auto error = static_cast<cudaError_t>(std::atoi(value));
    if (what == "malloc") {
      of_malloc = error;
    } else if (what == "memset") {
      of_memset = error;
    } else if (what == "attribute") {
      of_attribute = error;
    } else if (what == "capture") {
      capturing = std::atoi(value) != 0;
    } else {
      try {
        if (what == "tickets") {
          call_tickets(value);
        } else if (what == "count") {
          pal_fast::cuda::check_count(std::atoll(value), value, " cells");
        } else {
          std::printf("%d", pal_fast::cuda::multiprocessor_count(0));
        }
      } catch (const std::exception& thrown) {
        std::printf("%s", std::string(thrown.what()).substr(0, std::string(thrown.what()).find('\n')).c_str());
      }
      std::printf(" | %d\n", static_cast<int>(cudaGetLastError()));
    }
  }
}

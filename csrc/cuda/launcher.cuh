// Launches kernels on a stream and checks for launch errors.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace pal_fast::cuda {

struct Launcher {
  const char* name;  // of the operator, for error messages
  cudaStream_t stream;

  template <typename... Parameters>
  void operator()(void (*kernel)(Parameters...), int64_t blocks, int64_t threads, int64_t shared,
                  std::type_identity_t<Parameters>... arguments) const {
    if (blocks > std::numeric_limits<int32_t>::max()) {
      throw std::runtime_error(std::string(name) + ": the batch is too large for one launch");
    }
    kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), static_cast<size_t>(shared), stream>>>(
        arguments...);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) {
      throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(error));
    }
  }
};

}  // namespace pal_fast::cuda

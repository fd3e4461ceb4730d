// Batch normalisation on the GPU: launches.
#include "cuda/batch_norm/launch.cuh"
#include "cuda/launcher.cuh"

namespace pal_fast::cuda {
namespace {

[[nodiscard]] Launcher on(void* stream) { return {"batch normalisation", static_cast<cudaStream_t>(stream)}; }

}  // namespace

void launch_batch_norm_statistics(const BatchNormParams& params, void* stream) {
  run_batch_norm_statistics(params, on(stream));
}

void launch_batch_norm_forward(const BatchNormParams& params, void* stream) {
  run_batch_norm_forward(params, on(stream));
}

void launch_batch_norm_backward(const BatchNormParams& params, void* stream) {
  run_batch_norm_backward(params, on(stream));
}

void launch_batch_norm_double_backward(const BatchNormParams& params, void* stream) {
  run_batch_norm_double_backward(params, on(stream));
}

}  // namespace pal_fast::cuda

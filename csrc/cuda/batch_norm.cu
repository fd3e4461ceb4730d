// Batch normalisation on the GPU: the launches.
#include "batch_norm_launch.cuh"
#include "launcher.cuh"

namespace pal_fast::cuda {
namespace {

[[nodiscard]] Launcher on(void* stream) { return {"batch normalisation", static_cast<cudaStream_t>(stream)}; }

}  // namespace

void launch_batch_norm_statistics(const BatchNormPass& pass, void* stream) {
  run_batch_norm_statistics(pass, on(stream));
}

void launch_batch_norm_forward(const BatchNormPass& pass, void* stream) { run_batch_norm_forward(pass, on(stream)); }

void launch_batch_norm_backward(const BatchNormPass& pass, void* stream) { run_batch_norm_backward(pass, on(stream)); }

void launch_batch_norm_double_backward(const BatchNormPass& pass, void* stream) {
  run_batch_norm_double_backward(pass, on(stream));
}

}  // namespace pal_fast::cuda

// The loss on the GPU: the launch of the backward.
#include "cuda/launcher.cuh"
#include "cuda/pal_loss/launch.cuh"

namespace pal_fast::cuda {

void launch_pal_loss_backward(const LossBackwardParams& params, int multiprocessors, void* stream) {
  run_pal_loss_backward(params, multiprocessors, Launcher{"pal_loss_backward", static_cast<cudaStream_t>(stream)});
}

}  // namespace pal_fast::cuda

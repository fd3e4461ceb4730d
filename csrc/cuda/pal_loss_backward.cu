// The loss on the GPU: the launches of the backward.
#include "launcher.cuh"
#include "pal_loss_launch.cuh"

namespace pal_fast::cuda {

void launch_pal_loss_backward(const LossBackwardPass& pass, int processors, void* stream) {
  run_pal_loss_backward(pass, processors, Launcher{"pal_loss_backward", static_cast<cudaStream_t>(stream)});
}

}  // namespace pal_fast::cuda

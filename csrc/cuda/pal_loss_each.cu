// The loss on the GPU: the launches of the forward that scores every channel.
#include "launcher.cuh"
#include "pal_loss_launch.cuh"

namespace pal_fast::cuda {

void launch_each_forward(const LossPass& pass, int processors, void* stream) {
  run_each_forward(pass, processors, Launcher{"pal_loss", static_cast<cudaStream_t>(stream)});
}

}  // namespace pal_fast::cuda

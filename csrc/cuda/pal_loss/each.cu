// The loss on the GPU: the launch of the forward that scores every channel.
#include "cuda/launcher.cuh"
#include "cuda/pal_loss/launch.cuh"

namespace pal_fast::cuda {

void launch_each_forward(const LossParams& params, int multiprocessors, void* stream) {
  run_each_forward(params, multiprocessors, Launcher{"pal_loss", static_cast<cudaStream_t>(stream)});
}

}  // namespace pal_fast::cuda

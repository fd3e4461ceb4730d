// The loss on the GPU: the launches of the forward that sums over channels.
#include "launcher.cuh"
#include "pal_loss_launch.cuh"

namespace pal_fast::cuda {

void launch_map_forward(const LossPass& pass, int processors, void* stream) {
  run_map_forward(pass, processors, Launcher{"pal_loss", static_cast<cudaStream_t>(stream)});
}

}  // namespace pal_fast::cuda

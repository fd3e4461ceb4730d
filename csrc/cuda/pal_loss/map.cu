// The loss on the GPU: the launch of the forward that sums over channels.
#include "cuda/launcher.cuh"
#include "cuda/pal_loss/launch.cuh"

namespace pal_fast::cuda {

void launch_map_forward(const LossParams& params, int multiprocessors, void* stream) {
  run_map_forward(params, multiprocessors, Launcher{"pal_loss", static_cast<cudaStream_t>(stream)});
}

}  // namespace pal_fast::cuda

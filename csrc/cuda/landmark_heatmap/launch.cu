// Landmarks to heatmap on the GPU: launches.
#include "cuda/landmark_heatmap/launch.cuh"
#include "cuda/launcher.cuh"

namespace pal_fast::cuda {

void launch_landmark_heatmap(const HeatmapParams& params, void* stream) {
  run_landmark_heatmap(params, Launcher{"landmark_heatmap", static_cast<cudaStream_t>(stream)});
}

void launch_landmark_heatmap_backward(const HeatmapParams& params, void* stream) {
  run_landmark_heatmap_backward(params, Launcher{"landmark_heatmap_backward", static_cast<cudaStream_t>(stream)});
}

}  // namespace pal_fast::cuda

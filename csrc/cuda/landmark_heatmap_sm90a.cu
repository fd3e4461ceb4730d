// Landmarks to heatmap on the GPU: the launch of what only sm_90a has. setup.py compiles `*_sm90a.cu` for it alone.
#include "landmark_heatmap_warpgroup_launch.cuh"
#include "launcher.cuh"

namespace pal_fast::cuda {

void launch_landmark_heatmap_by_warpgroups(const HeatmapPass& pass, void* stream) {
  run_landmark_heatmap_by_warpgroups(pass, Launcher{"landmark_heatmap", static_cast<cudaStream_t>(stream)});
}

}  // namespace pal_fast::cuda

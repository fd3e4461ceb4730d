// Landmarks to heatmap on the GPU: the launch of the wgmma kernel. setup.py compiles `*_sm90a.cu` for sm_90a alone.
#include "cuda/landmark_heatmap/warpgroup_launch.cuh"
#include "cuda/launcher.cuh"

namespace pal_fast::cuda {

void launch_landmark_heatmap_wgmma(const HeatmapParams& params, void* stream) {
  run_landmark_heatmap_wgmma(params, Launcher{"landmark_heatmap", static_cast<cudaStream_t>(stream)});
}

}  // namespace pal_fast::cuda

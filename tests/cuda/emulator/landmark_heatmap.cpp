// The heatmap's CUDA kernels, emulated, as a Python module.
#include "bindings.h"
#include "matrices.h"
// The kernels come after what is emulated.
#include "cuda/landmark_heatmap/launch.cuh"
#include "cuda/landmark_heatmap/warpgroup_launch.cuh"

namespace py = pybind11;
using namespace pal_fast;
using namespace pal_fast::cuda;

namespace {

// tensors: by the names of HeatmapParams; returns how many kernels were launched.
int run(const py::dict& tensors, const std::string& dtype, int64_t height, int64_t width, double image_height,
        double image_width, double sigma, int64_t combine, int64_t normalize, int64_t multiprocessors, bool warpgroups,
        bool backward, unsigned seed) {
  emulator::lent.clear();
  emulator::seed(seed);
  emulator::launches = 0;
  HeatmapParams params;
  const auto shape = tensors["landmarks"].attr("shape");
  params.problem = {shape[py::int_(0)].cast<int64_t>(),
                    shape[py::int_(1)].cast<int64_t>(),
                    height,
                    width,
                    image_height,
                    image_width,
                    sigma,
                    static_cast<Combine>(combine),
                    static_cast<Normalize>(normalize)};
  params.storage = emulator::storage_named(dtype);
  params.tiles = plan_heatmap_tiles(params.problem, params.storage, {multiprocessors, warpgroups});
  const auto take = [&](const char* name) { return emulator::memory_of(tensors, name); };
  params.landmarks = take("landmarks");
  params.visible = take("visible");
  params.weights = take("weights");
  params.heatmap = take("heatmap");
  params.divisors = take("divisors");
  params.tickets = static_cast<unsigned*>(take("tickets"));
  params.grad = take("grad");
  params.raw = take("raw");
  params.winner = take("winner");
  params.d_landmarks = take("d_landmarks");
  params.d_weights = take("d_weights");
  if (backward) {
    run_landmark_heatmap_backward(params, emulator::Launcher());
  } else if (params.tiles.uses_wgmma) {
    run_landmark_heatmap_wgmma(params, emulator::Launcher());
  } else {
    run_landmark_heatmap(params, emulator::Launcher());
  }
  return emulator::launches;
}

// (tiles of a map, whether the forward needs divisors and tickets, whether the backward needs raw, whether warpgroups
// draw)
py::tuple workspace(int64_t batch, int64_t landmarks, const std::string& dtype, int64_t height, int64_t width,
                    int64_t combine, int64_t normalize, int64_t multiprocessors, bool warpgroups) {
  HeatmapProblem problem;
  problem.batch = batch;
  problem.landmarks = landmarks;
  problem.height = height;
  problem.width = width;
  problem.combine = static_cast<Combine>(combine);
  problem.normalize = static_cast<Normalize>(normalize);
  const Storage storage = emulator::storage_named(dtype);
  const HeatmapTiles tiles = plan_heatmap_tiles(problem, storage, {multiprocessors, warpgroups});
  return py::make_tuple(tiles.count(), heatmap_needs_divisors(problem, storage, tiles), heatmap_needs_raw(problem),
                        tiles.uses_wgmma);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("run", &run);
  module.def("workspace", &workspace);
}

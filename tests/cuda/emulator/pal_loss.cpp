// The loss's CUDA kernels, emulated, as a Python module.
#include "bindings.h"
#include "cuda/pal_loss/launch.cuh"

namespace py = pybind11;
using namespace pal_fast;
using namespace pal_fast::cuda;

namespace {

void prepare(unsigned seed) {
  emulator::lent.clear();
  emulator::seed(seed);
  emulator::launches = 0;
}

// (B, C, H, W, channels_last, n)
LossProblem problem_of(const std::tuple<int64_t, int64_t, int64_t, int64_t, bool, int64_t>& layer, int64_t attribution,
                       bool absolute, int64_t grouping) {
  LossProblem problem;
  bool channels_last = false;
  std::tie(problem.batch, problem.channels, problem.height, problem.width, channels_last, problem.count) = layer;
  problem.layout = channels_last ? Layout::channels_last : Layout::contiguous;
  problem.attribution = static_cast<Attribution>(attribution);
  problem.absolute = absolute;
  problem.grouping = static_cast<Grouping>(grouping);
  return problem;
}

using LayerShape = std::tuple<int64_t, int64_t, int64_t, int64_t, bool, int64_t>;

// Elements of shares and of totals.
std::pair<int64_t, int64_t> workspace(const LayerShape& layer, const std::string& dtype, int64_t grouping,
                                      int64_t multiprocessors) {
  const LossWorkspace sizes =
      loss_workspace(problem_of(layer, 0, true, grouping), emulator::storage_named(dtype), multiprocessors);
  return {sizes.partial_maps, sizes.partial_sums};
}

// Threads that share a channel in the forward of "each".
int64_t team_lanes(const LayerShape& layer, const std::string& dtype, int64_t multiprocessors) {
  const LossProblem problem = problem_of(layer, 0, true, static_cast<int64_t>(Grouping::each));
  return plan_forward_each(problem, emulator::storage_named(dtype), multiprocessors).lanes;
}

// tensors: by the names of LossParams; returns how many kernels were launched.
int run_forward(const py::dict& tensors, const LayerShape& layer, const std::string& dtype, double image_height,
                double image_width, double sigma, int64_t combine, int64_t normalize, int64_t attribution,
                bool absolute, int64_t grouping, int64_t score, int64_t scale, int64_t reduction, int multiprocessors,
                unsigned seed) {
  prepare(seed);
  LossParams params;
  params.problem = problem_of(layer, attribution, absolute, grouping);
  params.options = {static_cast<Score>(score), static_cast<Scale>(scale), static_cast<Reduction>(reduction)};
  params.storage = emulator::storage_named(dtype);
  params.heatmap.batch = params.problem.batch;
  params.heatmap.height = params.problem.height;
  params.heatmap.width = params.problem.width;
  if (!tensors["landmarks"].is_none()) {
    params.heatmap.landmarks = tensors["landmarks"].attr("shape")[py::int_(1)].cast<int64_t>();
    params.heatmap.image_height = image_height;
    params.heatmap.image_width = image_width;
    params.heatmap.sigma = sigma;
    params.heatmap.combine = static_cast<Combine>(combine);
    params.heatmap.normalize = static_cast<Normalize>(normalize);
  }
  const auto take = [&](const char* name) { return emulator::memory_of(tensors, name); };
  params.activation = take("activation");
  params.gradient = take("gradient");
  params.dense = take("heatmap");
  params.landmarks = take("landmarks");
  params.visible = take("visible");
  params.weights = take("weights");
  params.sample_weight = take("sample_weight");
  params.loss = take("loss");
  params.plane = take("plane");
  params.coefficients = take("coefficients");
  params.factor = take("factor");
  params.partial_maps = take("partial_maps");
  params.partial_sums = take("partial_sums");
  params.scores = take("scores");
  params.tickets = static_cast<unsigned*>(take("tickets"));
  params.problem.grouping == Grouping::each ? run_each_forward(params, multiprocessors, emulator::Launcher())
                                            : run_map_forward(params, multiprocessors, emulator::Launcher());
  return emulator::launches;
}

int run_backward(const py::dict& tensors, int64_t grad_loss_stride, const LayerShape& layer, const std::string& dtype,
                 int64_t attribution, bool absolute, int64_t grouping, int multiprocessors, unsigned seed) {
  prepare(seed);
  LossBackwardParams params;
  params.problem = problem_of(layer, attribution, absolute, grouping);
  params.storage = emulator::storage_named(dtype);
  params.grad_loss_stride = grad_loss_stride;
  const auto take = [&](const char* name) { return emulator::memory_of(tensors, name); };
  params.d_activation = take("d_activation");
  params.d_gradient = take("d_gradient");
  params.grad_loss = take("grad_loss");
  params.activation = backward_reads_activation(params) ? take("activation") : nullptr;
  params.gradient = backward_reads_gradient(params) ? take("gradient") : nullptr;
  params.plane = take("plane");
  params.coefficients = take("coefficients");
  params.factor = take("factor");
  run_pal_loss_backward(params, multiprocessors, emulator::Launcher());
  return emulator::launches;
}

// The most shared memory that any launch of a forward takes for maps and layers of many sizes: every size of map that
// fits in a block as a whole, and some that do not.
template <typename S>
int64_t most_shared_memory_of(Storage storage, bool channels_last) {
  int64_t most = 0;
  const Layout layout = channels_last ? Layout::channels_last : Layout::contiguous;
  const Occupancy occupancy{132, resident_each_blocks(sizeof(S)) * MAX_BLOCK_THREADS};
  for (int64_t cells = 1; cells < 9000; cells = cells < 2100 ? cells + 1 : cells + 97) {
    for (const bool landmarks : {false, true}) {
      most = std::max(most, shared_bytes<MapShared<S>>(cells, landmarks, !channels_last, MAX_BLOCK_THREADS));
    }
    for (int64_t count = 1; count < 3000; count = count < 20 ? count + 1 : 2 * count + 3) {
      for (const int64_t batch : {1, 64, 1000}) {
        const EachSweep sweep = each_sweep(plan_each(batch, cells, count, layout, storage, occupancy), cells);
        most = std::max(most, shared_bytes<EachShared<S>>(sweep));
        if (static_cast<int64_t>(sweep.splits) * sweep.channels_per_split < count) {
          throw std::runtime_error("a plan that leaves channels out");
        }
        if (sweep.lanes * sweep.tile_channels > MAX_BLOCK_THREADS) {
          throw std::runtime_error("a tile of more channels than there are teams");
        }
      }
    }
  }
  return most;
}

int64_t most_shared_memory(const std::string& dtype, bool channels_last) {
  const Storage storage = emulator::storage_named(dtype);
  return dispatch_storage(storage, [&]<typename S>() { return most_shared_memory_of<S>(storage, channels_last); });
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("workspace", &workspace);
  module.def("team_lanes", &team_lanes);
  module.def("forward", &run_forward);
  module.def("backward", &run_backward);
  module.def("most_shared_memory", &most_shared_memory);
  emulator::define_watch(module);
}

// Batch normalisation's CUDA kernels, emulated, as a Python module.
// clang-format off: the emulator first
#include "bindings.h"
#include "cuda/batch_norm/launch.cuh"
// clang-format on

namespace py = pybind11;
using namespace pal_fast;
using namespace pal_fast::cuda;

namespace {

// (B, C, L, channels_last)
using Shape = std::tuple<int64_t, int64_t, int64_t, bool>;

BatchNormProblem problem_of(const Shape& shape, bool training, bool relu) {
  const auto [batch, channels, length, channels_last] = shape;
  return {batch, channels, length, channels_last ? Layout::channels_last : Layout::contiguous, training, relu};
}

BatchNormPlan plan_of(const Shape& shape, const std::string& dtype, bool aligned, int64_t multiprocessors) {
  return plan_batch_norm(problem_of(shape, true, false), emulator::storage_named(dtype), aligned, multiprocessors);
}

// The form's name, whether vectors are taken, how many splits, rows of partial, tickets.
py::tuple plan(const Shape& shape, const std::string& dtype, bool aligned, int64_t multiprocessors) {
  const BatchNormPlan found = plan_of(shape, dtype, aligned, multiprocessors);
  const char* names[] = {"planes", "runs", "rows"};
  return py::make_tuple(names[static_cast<int>(found.tiling)], found.vectorised, found.splits(),
                        batch_norm_partial_rows(found), found.tiles);
}

// operator_name: as in torch.ops.pal_fast; tensors: by the names of BatchNormParams. Returns how many kernels ran.
int run(const std::string& operator_name, const py::dict& tensors, const Shape& shape, const std::string& dtype,
        bool training, bool relu, double momentum, double eps, bool aligned, int multiprocessors, unsigned seed) {
  emulator::lent.clear();
  emulator::seed(seed);
  emulator::launches = 0;
  BatchNormParams params;
  params.problem = problem_of(shape, training, relu);
  params.storage = emulator::storage_named(dtype);
  params.plan = plan_of(shape, dtype, aligned, multiprocessors);
  const auto memory = [&](const char* name) { return emulator::memory_of(tensors, name); };
  params.input = memory("input");
  params.grad = memory("grad");
  params.grad_grad = memory("grad_grad");
  params.weight = memory("weight");
  params.bias = memory("bias");
  params.sums = memory("sums");
  params.grad_sums = memory("grad_sums");
  params.statistics = memory("statistics");
  params.running_mean = memory("running_mean");
  params.running_variance = memory("running_variance");
  params.momentum = momentum;
  params.eps = eps;
  params.output = memory("output");
  params.second_output = memory("second_output");
  params.channel_output = memory("channel_output");
  params.partial = memory("partial");
  params.tickets = static_cast<unsigned*>(memory("tickets"));
  const emulator::Launcher launch;
  if (operator_name == "batch_norm_statistics") {
    run_batch_norm_statistics(params, launch);
  } else if (operator_name == "batch_norm") {
    run_batch_norm_forward(params, launch);
  } else if (operator_name == "batch_norm_backward") {
    run_batch_norm_backward(params, launch);
  } else if (operator_name == "batch_norm_double_backward") {
    run_batch_norm_double_backward(params, launch);
  } else {
    throw std::invalid_argument("no operator " + operator_name);
  }
  return emulator::launches;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("plan", &plan);
  module.def("run", &run);
  emulator::define_watch(module);
}

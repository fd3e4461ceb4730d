// Batch normalisation's CUDA kernels, emulated, as a Python module.
// clang-format off: the emulator first
#include "bindings.h"
#include "batch_norm_launch.cuh"
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

BatchNormPlan plan_of(const Shape& shape, const std::string& dtype, bool aligned, int64_t processors) {
  return plan_batch_norm(problem_of(shape, true, false), emulator::storage_named(dtype), aligned, processors);
}

// The form's name, whether vectors are taken, how many splits, rows of partial, tickets.
py::tuple plan(const Shape& shape, const std::string& dtype, bool aligned, int64_t processors) {
  const BatchNormPlan found = plan_of(shape, dtype, aligned, processors);
  const char* names[] = {"planes", "runs", "rows"};
  return py::make_tuple(names[static_cast<int>(found.form)], found.wide, found.splits(), batch_norm_partial_rows(found),
                        found.tiles);
}

// operator_name: as in torch.ops.pal_fast; tensors: by the names of BatchNormPass. Returns how many kernels ran.
int run(const std::string& operator_name, const py::dict& tensors, const Shape& shape, const std::string& dtype,
        bool training, bool relu, double momentum, double eps, bool aligned, int processors, unsigned seed) {
  emulator::lent.clear();
  emulator::seed(seed);
  emulator::launches = 0;
  BatchNormPass pass;
  pass.problem = problem_of(shape, training, relu);
  pass.storage = emulator::storage_named(dtype);
  pass.plan = plan_of(shape, dtype, aligned, processors);
  const auto memory = [&](const char* name) { return emulator::memory_of(tensors, name); };
  pass.input = memory("input");
  pass.grad = memory("grad");
  pass.grad_grad = memory("grad_grad");
  pass.weight = memory("weight");
  pass.bias = memory("bias");
  pass.sums = memory("sums");
  pass.grad_sums = memory("grad_sums");
  pass.statistics = memory("statistics");
  pass.running_mean = memory("running_mean");
  pass.running_variance = memory("running_variance");
  pass.momentum = momentum;
  pass.eps = eps;
  pass.output = memory("output");
  pass.second_output = memory("second_output");
  pass.channel_output = memory("channel_output");
  pass.partial = memory("partial");
  pass.tickets = static_cast<unsigned*>(memory("tickets"));
  const emulator::Launcher launch;
  if (operator_name == "batch_norm_statistics") {
    run_batch_norm_statistics(pass, launch);
  } else if (operator_name == "batch_norm") {
    run_batch_norm_forward(pass, launch);
  } else if (operator_name == "batch_norm_backward") {
    run_batch_norm_backward(pass, launch);
  } else if (operator_name == "batch_norm_double_backward") {
    run_batch_norm_double_backward(pass, launch);
  } else {
    throw std::invalid_argument("no operator " + operator_name);
  }
  return emulator::launches;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("plan", &plan);
  module.def("run", &run);
}

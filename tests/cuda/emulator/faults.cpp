// Kernels with known faults that the emulator must catch.
#include "bindings.h"
#include "cuda/block.cuh"
#include "cuda/shared_layout.cuh"

namespace py = pybind11;
using namespace pal_fast::cuda;

namespace {

// 1. A block reverses 64 numbers through shared memory, with or without the barrier that this needs.
__global__ void reverse_kernel(Pointer<const float> from, Pointer<float> to, bool with_barrier) {
  SharedLayout layout(shared_memory());
  const Pointer<float> held = layout.allocate<float>(64);
  const int thread = threadIdx.x;
  held[thread] = from[thread];
  if (with_barrier) {
    __syncthreads();
  }
  to[thread] = held[63 - thread];
}

// 2. Four blocks write a quarter each, and the last one, or without the ticket the fourth one, adds up.
__global__ void total_kernel(Pointer<const float> from, Pointer<float> parts, Pointer<float> to,
                             Pointer<unsigned> ticket, bool with_ticket) {
  SharedLayout layout(shared_memory());
  const Pointer<float> scratch = layout.allocate<float>(MAX_BLOCK_WARPS);
  const Pointer<unsigned> flag = layout.allocate<unsigned>(1);
  float sum[1] = {from[blockIdx.x * 32 + threadIdx.x]};
  block_reduce<1>(sum, scratch, Sum());
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = sum[0];
  }
  const bool last = with_ticket ? is_last_block(ticket, 4, flag) : blockIdx.x == 3;
  if (last && threadIdx.x == 0) {
    to[0] = parts[0] + parts[1] + parts[2] + parts[3];
  }
}

// 3. Accesses of one thread: a read, a write and a vector at `index`.
__global__ void access_kernel(Pointer<float> memory, int64_t index, int kind) {
  if (threadIdx.x != 0) {
    return;
  }
  if (kind == 0) {
    const float value = memory[index];
    memory[0] = value;
  } else if (kind == 1) {
    memory[index] = 1;
  } else {
    float value[4];
    load_vector<float>(memory + index).widen(value);
    memory[0] = value[0];
  }
}

// 4. Half of the block waits at one barrier, half at a shuffle that the other half never reaches.
__global__ void divergent_kernel(bool shuffle) {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
    __syncthreads();
  } else if (shuffle) {
    (void)__shfl_xor_sync(FULL_WARP_MASK, 1.0f, 1);
  }
}

float* floats(const py::dict& tensors, const char* name) {
  return static_cast<float*>(emulator::memory_of(tensors, name));
}

void prepare(unsigned seed) {
  emulator::lent.clear();
  emulator::seed(seed);
}

void reverse(const py::dict& tensors, bool with_barrier, unsigned seed) {
  prepare(seed);
  emulator::Launcher()(reverse_kernel, 1, 64, 256, global_array<const float>(floats(tensors, "from"), 64),
                       global_array<float>(floats(tensors, "to"), 64), with_barrier);
}

void total(const py::dict& tensors, bool with_ticket, unsigned seed) {
  prepare(seed);
  emulator::Launcher()(total_kernel, 4, 32, 64, global_array<const float>(floats(tensors, "from"), 128),
                       global_array<float>(floats(tensors, "parts"), 4), global_array<float>(floats(tensors, "to"), 1),
                       global_array<unsigned>(emulator::memory_of(tensors, "ticket"), 1), with_ticket);
}

void touch(const py::dict& tensors, int64_t claimed, int64_t index, int kind) {
  prepare(0);
  emulator::Launcher()(access_kernel, 1, 32, 0, global_array<float>(floats(tensors, "memory"), claimed), index, kind);
}

void diverge(bool shuffle) {
  prepare(0);
  emulator::Launcher()(divergent_kernel, 1, 64, 0, shuffle);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("reverse", &reverse);
  module.def("total", &total);
  module.def("touch", &touch);
  module.def("diverge", &diverge);
}

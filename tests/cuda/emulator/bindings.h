// What the Python modules of emulated kernels share: tensors as kernels take them, and the launcher.
#pragma once

#include <pybind11/pybind11.h>

#include "emulator.h"
#include "options.h"

namespace emulator {

// A tensor's memory, lent to the kernels for the call; null for None and for tensors without elements. Only Python's
// side of a tensor is used, so that no header of PyTorch has to be compiled.
inline void* memory_of(const pybind11::dict& tensors, const char* name) {
  if (!tensors.contains(name) || tensors[name].is_none()) {
    return nullptr;
  }
  const pybind11::object tensor = tensors[name];
  const auto bytes = tensor.attr("nbytes").cast<int64_t>();
  if (bytes == 0) {
    return nullptr;
  }
  auto* memory = reinterpret_cast<void*>(tensor.attr("data_ptr")().cast<uintptr_t>());
  lend(memory, bytes);
  return memory;
}

inline pal_fast::Storage storage_named(const std::string& dtype) {
  using pal_fast::Storage;
  return dtype == "torch.float16"    ? Storage::float16
         : dtype == "torch.bfloat16" ? Storage::bfloat16
         : dtype == "torch.float32"  ? Storage::float32
                                     : Storage::float64;
}

// How many kernels ran since it was last set to 0.
inline int launches = 0;

struct Launcher {
  template <typename... Parameters>
  void operator()(void (*kernel)(Parameters...), int64_t blocks, int64_t threads, int64_t shared,
                  std::type_identity_t<Parameters>... arguments) const {
    launches += 1;
    launch({static_cast<unsigned>(blocks)}, {static_cast<unsigned>(threads)}, shared, [&] { kernel(arguments...); });
  }
};

// Defines watch() and accesses() in a module of kernels.
inline void define_watch(pybind11::module_& module) {
  // Records the accesses to this memory from here on.
  module.def("watch", [](uintptr_t memory, int64_t bytes) {
    const auto* begin = reinterpret_cast<const unsigned char*>(memory);
    watch = {begin, begin + bytes, {}};
  });
  // Of each kernel since watch(): (block, thread, byte offset) of each access.
  module.def("accesses", [] {
    pybind11::list kernels;
    for (const std::vector<Access>& kernel : watch.kernels) {
      pybind11::list found;
      for (const Access& access : kernel) {
        found.append(pybind11::make_tuple(access.block, access.thread, access.offset));
      }
      kernels.append(found);
    }
    watch = {};
    return kernels;
  });
}

}  // namespace emulator

// How many elements of a storage type, and from which addresses, a thread accesses at once.
#pragma once

#include <cstdint>

#include "options.h"

namespace pal_fast::cuda {

// Bytes of an element.
[[nodiscard]] constexpr int64_t element_size(Storage storage) {
  return storage == Storage::float64 ? 8 : storage == Storage::float32 ? 4 : 2;
}

// Elements of a 16-byte vector, the widest access of a thread.
[[nodiscard]] constexpr int64_t vector_elements(Storage storage) { return 16 / element_size(storage); }

// Whether 16-byte accesses to `memory` are aligned. Null counts as aligned.
[[nodiscard]] inline bool aligned(const void* memory) { return reinterpret_cast<uintptr_t>(memory) % 16 == 0; }

}  // namespace pal_fast::cuda

// The storage types of tensor elements, as an enumeration for host code.
#pragma once

#include <cstdint>

namespace pal_fast::cuda {

enum class Storage { float16, bfloat16, float32, float64 };

// Bytes of an element.
[[nodiscard]] constexpr int64_t element_size(Storage storage) {
  return storage == Storage::float64 ? 8 : storage == Storage::float32 ? 4 : 2;
}

// Elements of a 16-byte vector, the widest access of a thread.
[[nodiscard]] constexpr int64_t vector_elements(Storage storage) { return 16 / element_size(storage); }

// Whether 16-byte accesses to `memory` are aligned. Null counts as aligned.
[[nodiscard]] inline bool aligned(const void* memory) { return reinterpret_cast<uintptr_t>(memory) % 16 == 0; }

}  // namespace pal_fast::cuda

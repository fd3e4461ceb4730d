// The types that elements have in memory, as plain numbers.
#pragma once

#include <cstdint>

namespace pal_fast::cuda {

enum class Storage { float16, bfloat16, float32, float64 };

// Bytes of an element.
[[nodiscard]] constexpr int64_t size_of(Storage storage) {
  return storage == Storage::float64 ? 8 : storage == Storage::float32 ? 4 : 2;
}

// Elements of the widest load or store of a thread, 16 bytes.
[[nodiscard]] constexpr int64_t vector_of(Storage storage) { return 16 / size_of(storage); }

}  // namespace pal_fast::cuda

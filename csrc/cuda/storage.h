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

// Whether memory starts where it can be loaded and stored so. Null does.
[[nodiscard]] inline bool aligned(const void* memory) { return reinterpret_cast<uintptr_t>(memory) % 16 == 0; }

}  // namespace pal_fast::cuda

// The arrays of a kernel in a block's dynamic shared memory: described once, for the kernel and for its launch.
#pragma once

#include "cuda/memory.cuh"

namespace pal_fast::cuda {

// Lays out arrays one after another. A struct of a kernel's arrays describes them in a constructor that takes a
// SharedLayout first: the kernel constructs it by allocate_shared(), and the host, which has no such memory, by
// shared_bytes().
class SharedLayout {
 public:
  // Without memory, the arrays are null and only counted.
  __host__ __device__ __forceinline__ SharedLayout() : memory_(nullptr), has_memory_(false) {}
  __host__ __device__ __forceinline__ explicit SharedLayout(unsigned char* memory)
      : memory_(memory), has_memory_(true) {}

  // `count` elements, aligned to 16 bytes.
  template <typename T>
  [[nodiscard]] __host__ __device__ __forceinline__ Pointer<T> allocate(int64_t count) {
    const int64_t offset = bytes_;
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
    return has_memory_ ? shared_array<T>(memory_, offset, count) : Pointer<T>(nullptr);
  }

  [[nodiscard]] __host__ __device__ __forceinline__ int64_t bytes() const { return bytes_; }

 private:
  unsigned char* memory_;
  bool has_memory_;  // a constant after inlining, which memory_ == nullptr is not
  int64_t bytes_ = 0;
};

// In a kernel: the arrays of `Shared`, at the beginning of the block's shared memory.
template <typename Shared, typename... Arguments>
[[nodiscard]] __device__ __forceinline__ Shared allocate_shared(const Arguments&... arguments) {
  SharedLayout layout(shared_memory());
  return Shared(layout, arguments...);
}

// On the host: the bytes of those arrays, for the launch.
template <typename Shared, typename... Arguments>
[[nodiscard]] int64_t shared_bytes(const Arguments&... arguments) {
  SharedLayout layout;
  (void)Shared(layout, arguments...);
  return layout.bytes();
}

}  // namespace pal_fast::cuda

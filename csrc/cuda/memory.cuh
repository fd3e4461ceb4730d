// Memory as kernels see it. On a GPU Pointer<T> is T*; tests/cuda/emulator puts a class in its place that checks the
// bounds and the alignment of every access.
#pragma once

#include <cstdint>

#include "scalar.cuh"

namespace pal_fast::cuda {

#ifndef PAL_FAST_EMULATED

template <typename T>
using Pointer = T*;

// `count` elements in global memory.
template <typename T, typename V>
[[nodiscard]] __host__ __device__ __forceinline__ Pointer<T> elements(V* memory, int64_t) {
  return static_cast<T*>(memory);
}

// The dynamic shared memory of the block, aligned to 16 bytes.
[[nodiscard]] __device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char pal_fast_shared_memory[];
  return pal_fast_shared_memory;
}

template <typename T>
[[nodiscard]] __device__ __forceinline__ Pointer<T> shared_elements(int64_t offset, int64_t) {
  return reinterpret_cast<T*>(shared_memory() + offset);
}

// 16 aligned bytes as V: cached in L2 only, because no thread of the multiprocessor reads them again.
template <typename V, typename S>
[[nodiscard]] __device__ __forceinline__ V load_16_bytes(const S* from) {
  const int4 bits = __ldcg(reinterpret_cast<const int4*>(from));
  V value;
  *reinterpret_cast<int4*>(&value) = bits;
  return value;
}

template <typename V, typename S>
__device__ __forceinline__ void store_16_bytes(S* to, const V& value) {
  *reinterpret_cast<int4*>(to) = *reinterpret_cast<const int4*>(&value);
}

#endif

// What 16 bytes hold.
template <typename S>
inline constexpr int VECTOR = 16 / static_cast<int>(sizeof(S));

template <typename S>
struct alignas(16) Vector {
  S value[VECTOR<S>];
};

template <typename S>
[[nodiscard]] __device__ __forceinline__ Vector<S> load_vector(Pointer<const S> from) {
  return load_16_bytes<Vector<S>>(from);
}

template <typename S>
__device__ __forceinline__ void store_vector(Pointer<S> to, const Vector<S>& value) {
  store_16_bytes<Vector<S>>(to, value);
}

// Where the arrays of a block lie in its dynamic shared memory, one behind the other. The host lays the same arrays out
// to know how many bytes a launch needs.
class SharedLayout {
 public:
  // The offset of `count` elements of `size` bytes.
  __host__ __device__ constexpr int64_t add(int64_t count, int64_t size) {
    const int64_t offset = bytes_;
    bytes_ += (count * size + 15) / 16 * 16;
    return offset;
  }

  template <typename T>
  [[nodiscard]] __device__ __forceinline__ Pointer<T> take(int64_t count) {
    return shared_elements<T>(add(count, sizeof(T)), count);
  }

  [[nodiscard]] __host__ __device__ constexpr int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

}  // namespace pal_fast::cuda

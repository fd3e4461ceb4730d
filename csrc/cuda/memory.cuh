// Memory as kernels see it. On a GPU Pointer<T> is T*; tests/cuda/emulator puts a class in its place that checks the
// bounds and the alignment of every access.
#pragma once

#include <cstdint>
#include <cstring>

#include "scalar.cuh"
#include "wide_store.cuh"

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

// 16 aligned bytes; they stay in L2 only, because no thread of the multiprocessor reads them again.
template <typename S>
[[nodiscard]] __device__ __forceinline__ uint4 load_16_bytes(const S* from) {
  return __ldcg(reinterpret_cast<const uint4*>(from));
}

// The same, and L2 may forget them first.
template <typename S>
[[nodiscard]] __device__ __forceinline__ uint4 load_16_bytes_last(const S* from) {
  return __ldcs(reinterpret_cast<const uint4*>(from));
}

// To global memory.
template <typename S>
__device__ __forceinline__ void store_16_bytes(S* to, const uint4& bits) {
  store_words(to, bits);
}

template <typename S>
[[nodiscard]] __device__ __forceinline__ uint4 load_16_bytes_shared(const S* from) {
  return *reinterpret_cast<const uint4*>(from);
}

template <typename S>
__device__ __forceinline__ void store_16_bytes_shared(S* to, const uint4& bits) {
  *reinterpret_cast<uint4*>(to) = bits;
}

// Orders what this thread has seen and stored before what it does next, as all threads of the device see it.
__device__ __forceinline__ void fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// 2^exponent, as the GPU's own instruction has it; 0 below 2^-126.
[[nodiscard]] __device__ __forceinline__ float power_of_two(float exponent) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(exponent));
  return power;
}

// Has L2 fetch what will soon be loaded from global memory.
template <typename S>
__device__ __forceinline__ void prefetch(const S* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(from)));
}

#endif

// The value whose bits these are.
template <typename To, typename From>
[[nodiscard]] __device__ __forceinline__ To same_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(static_cast<void*>(&to), &from, sizeof(To));
  return to;
}

// Two elements of 16 bits, the first in the low half: one instruction.
template <typename S>
[[nodiscard]] __device__ __forceinline__ unsigned narrowed_pair(float first, float second) {
  if constexpr (std::is_same_v<S, __half>) {
    return same_bits<unsigned>(__floats2half2_rn(first, second));
  } else {
    return same_bits<unsigned>(__floats2bfloat162_rn(first, second));
  }
}

// What 16 bytes hold.
template <typename S>
inline constexpr int VECTOR = 16 / static_cast<int>(sizeof(S));

// They are kept as they are loaded, in four registers, and widened where they are used.
template <typename S>
struct Vector {
  using T = typename Computing<S>::type;

  uint4 bits;

  __device__ __forceinline__ void widen(T (&to)[VECTOR<S>]) const {
    if constexpr (std::is_same_v<S, double>) {
      to[0] = same_bits<double>(static_cast<unsigned long long>(bits.y) << 32 | bits.x);
      to[1] = same_bits<double>(static_cast<unsigned long long>(bits.w) << 32 | bits.z);
    } else {
      const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        if constexpr (std::is_same_v<S, float>) {
          to[w] = same_bits<float>(words[w]);
        } else if constexpr (std::is_same_v<S, __nv_bfloat16>) {
          to[2 * w] = same_bits<float>(words[w] << 16);
          to[2 * w + 1] = same_bits<float>(words[w] & 0xffff0000u);
        } else {
          to[2 * w] = widened(same_bits<__half>(static_cast<unsigned short>(words[w] & 0xffffu)));
          to[2 * w + 1] = widened(same_bits<__half>(static_cast<unsigned short>(words[w] >> 16)));
        }
      }
    }
  }

  [[nodiscard]] static __device__ __forceinline__ Vector narrow(const T (&from)[VECTOR<S>]) {
    if constexpr (std::is_same_v<S, double>) {
      const auto low = same_bits<unsigned long long>(from[0]);
      const auto high = same_bits<unsigned long long>(from[1]);
      return {{static_cast<unsigned>(low), static_cast<unsigned>(low >> 32), static_cast<unsigned>(high),
               static_cast<unsigned>(high >> 32)}};
    } else {
      unsigned words[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        if constexpr (std::is_same_v<S, float>) {
          words[w] = same_bits<unsigned>(from[w]);
        } else {
          words[w] = narrowed_pair<S>(from[2 * w], from[2 * w + 1]);
        }
      }
      return {{words[0], words[1], words[2], words[3]}};
    }
  }

  // All elements alike.
  [[nodiscard]] static __device__ __forceinline__ Vector filled(T value) {
    T from[VECTOR<S>];
#pragma unroll
    for (int e = 0; e < VECTOR<S>; ++e) {
      from[e] = value;
    }
    return narrow(from);
  }
};

template <typename S>
[[nodiscard]] __device__ __forceinline__ Vector<S> load_vector(Pointer<const S> from) {
  return {load_16_bytes(from)};
}

// For what nothing will read again before long.
template <typename S>
[[nodiscard]] __device__ __forceinline__ Vector<S> load_vector_for_the_last_time(Pointer<const S> from) {
  return {load_16_bytes_last(from)};
}

template <typename S>
__device__ __forceinline__ void store_vector(Pointer<S> to, const typename Computing<S>::type (&from)[VECTOR<S>]) {
  store_16_bytes(to, Vector<S>::narrow(from).bits);
}

template <typename S>
__device__ __forceinline__ void store_vector_shared(Pointer<S> to,
                                                    const typename Computing<S>::type (&from)[VECTOR<S>]) {
  store_16_bytes_shared(to, Vector<S>::narrow(from).bits);
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

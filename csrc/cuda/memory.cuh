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

// Whether 16 bytes can be loaded from there at once.
template <typename T>
[[nodiscard]] __device__ __forceinline__ bool starts_a_vector(const T* memory) {
  return reinterpret_cast<uintptr_t>(memory) % 16 == 0;
}

// 16 aligned bytes; they stay in L2 only, because no thread of the multiprocessor reads them again.
template <typename S>
[[nodiscard]] __device__ __forceinline__ uint4 load_16_bytes(const S* from) {
  return __ldcg(reinterpret_cast<const uint4*>(from));
}

// 8 aligned bytes, likewise.
template <typename S>
[[nodiscard]] __device__ __forceinline__ uint2 load_8_bytes(const S* from) {
  return __ldcg(reinterpret_cast<const uint2*>(from));
}

// 16, and L2 may forget them first.
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
__device__ __forceinline__ void store_8_bytes(S* to, const uint2& bits) {
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

// N elements, 16 bytes or 8. They are kept as they are loaded, in registers, and widened where they are used.
template <typename S, int N = VECTOR<S>>
struct Vector {
  using T = typename Computing<S>::type;
  static constexpr int WORDS = N * static_cast<int>(sizeof(S)) / 4;
  static_assert(WORDS == 4 || WORDS == 2);
  using Bits = std::conditional_t<WORDS == 4, uint4, uint2>;
  struct Words {
    unsigned at[WORDS];
  };

  Bits bits;

  __device__ __forceinline__ void widen(T (&to)[N]) const {
    const Words words = same_bits<Words>(bits);
    if constexpr (std::is_same_v<S, double>) {
#pragma unroll
      for (int e = 0; e < N; ++e) {
        to[e] = same_bits<double>(static_cast<unsigned long long>(words.at[2 * e + 1]) << 32 | words.at[2 * e]);
      }
    } else {
#pragma unroll
      for (int w = 0; w < WORDS; ++w) {
        if constexpr (std::is_same_v<S, float>) {
          to[w] = same_bits<float>(words.at[w]);
        } else if constexpr (std::is_same_v<S, __nv_bfloat16>) {
          to[2 * w] = same_bits<float>(words.at[w] << 16);
          to[2 * w + 1] = same_bits<float>(words.at[w] & 0xffff0000u);
        } else {
          to[2 * w] = widened(same_bits<__half>(static_cast<unsigned short>(words.at[w] & 0xffffu)));
          to[2 * w + 1] = widened(same_bits<__half>(static_cast<unsigned short>(words.at[w] >> 16)));
        }
      }
    }
  }

  [[nodiscard]] static __device__ __forceinline__ Vector narrow(const T (&from)[N]) {
    Words words;
    if constexpr (std::is_same_v<S, double>) {
#pragma unroll
      for (int e = 0; e < N; ++e) {
        const auto wide = same_bits<unsigned long long>(from[e]);
        words.at[2 * e] = static_cast<unsigned>(wide);
        words.at[2 * e + 1] = static_cast<unsigned>(wide >> 32);
      }
    } else {
#pragma unroll
      for (int w = 0; w < WORDS; ++w) {
        if constexpr (std::is_same_v<S, float>) {
          words.at[w] = same_bits<unsigned>(from[w]);
        } else {
          words.at[w] = narrowed_pair<S>(from[2 * w], from[2 * w + 1]);
        }
      }
    }
    return {same_bits<Bits>(words)};
  }

  // All elements alike.
  [[nodiscard]] static __device__ __forceinline__ Vector filled(T value) {
    T from[N];
#pragma unroll
    for (int e = 0; e < N; ++e) {
      from[e] = value;
    }
    return narrow(from);
  }
};

// One element, where vectors do not fit.
template <typename S>
struct Vector<S, 1> {
  using T = typename Computing<S>::type;

  S bits;

  __device__ __forceinline__ void widen(T (&to)[1]) const { to[0] = widened(bits); }
  [[nodiscard]] static __device__ __forceinline__ Vector narrow(const T (&from)[1]) { return {narrowed<S>(from[0])}; }
  [[nodiscard]] static __device__ __forceinline__ Vector filled(T value) { return {narrowed<S>(value)}; }
};

template <typename S, int N = VECTOR<S>>
[[nodiscard]] __device__ __forceinline__ Vector<S, N> load_vector(Pointer<const S> from) {
  if constexpr (N == 1) {
    return {from[0]};
  } else if constexpr (Vector<S, N>::WORDS == 2) {
    return {load_8_bytes(from)};
  } else {
    return {load_16_bytes(from)};
  }
}

// For what nothing will read again before long.
template <typename S>
[[nodiscard]] __device__ __forceinline__ Vector<S> load_vector_for_the_last_time(Pointer<const S> from) {
  return {load_16_bytes_last(from)};
}

template <typename S, int N>
__device__ __forceinline__ void store_vector(Pointer<S> to, const typename Computing<S>::type (&from)[N]) {
  const Vector<S, N> vector = Vector<S, N>::narrow(from);
  if constexpr (N == 1) {
    to[0] = vector.bits;
  } else if constexpr (Vector<S, N>::WORDS == 2) {
    store_8_bytes(to, vector.bits);
  } else {
    store_16_bytes(to, vector.bits);
  }
}

template <typename S>
__device__ __forceinline__ void store_vector_shared(Pointer<S> to,
                                                    const typename Computing<S>::type (&from)[VECTOR<S>]) {
  store_16_bytes_shared(to, Vector<S>::narrow(from).bits);
}

// W neighbouring elements of shared memory: one, or vectors of 16 aligned bytes.
template <int W, typename T>
__device__ __forceinline__ void load_shared(Pointer<const T> from, T (&to)[W]) {
  if constexpr (W == 1) {
    to[0] = from[0];
  } else {
    constexpr int V = VECTOR<T>;
    static_assert(W % V == 0);
#pragma unroll
    for (int first = 0; first < W; first += V) {
      T some[V];
      Vector<T>{load_16_bytes_shared(from + first)}.widen(some);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        to[first + e] = some[e];
      }
    }
  }
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

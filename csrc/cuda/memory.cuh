// Memory accesses of the kernels. Pointer<T> is T* on a GPU; tests/cuda/emulator substitutes a class that checks the
// bounds and alignment of every access.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/scalar.cuh"
#include "cuda/vector_store.cuh"

namespace pal_fast::cuda {

// How a load of global memory is cached.
//   l1: in L1 and L2 (ld.global), for what other threads of the multiprocessor read too. What another block of the same
//     launch stored may be read so only behind is_last_block().
//   l2: in L2 alone (ld.global.cg), for the elements of a layer: no other thread of the multiprocessor reads them, or
//   all
//     do so only once, for a pivot.
//   streaming: evicted first (ld.global.cs), for what is not read again soon.
enum class Cache { l1, l2, streaming };

#ifndef PAL_FAST_EMULATED

template <typename T>
using Pointer = T*;

// An array in global memory. Only the emulator uses its number of elements, the second argument.
template <typename T, typename V>
[[nodiscard]] __host__ __device__ __forceinline__ Pointer<T> global_array(V* memory, int64_t) {
  return static_cast<T*>(memory);
}

// The block's dynamic shared memory, aligned to 16 bytes.
[[nodiscard]] __device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char pal_fast_shared_memory[];
  return pal_fast_shared_memory;
}

// An array `offset` bytes into it. Only the emulator uses its number of elements, the third argument.
template <typename T>
[[nodiscard]] __host__ __device__ __forceinline__ Pointer<T> shared_array(unsigned char* memory, int64_t offset,
                                                                          int64_t) {
  return reinterpret_cast<T*>(memory + offset);
}

// Whether a 16-byte access to `memory` is aligned.
template <typename T>
[[nodiscard]] __device__ __forceinline__ bool is_vector_aligned(const T* memory) {
  return reinterpret_cast<uintptr_t>(memory) % 16 == 0;
}

// Loads 16 or 8 aligned bytes of global memory: Bits is uint4 or uint2.
template <Cache C, typename Bits, typename S>
[[nodiscard]] __device__ __forceinline__ Bits load_bits(const S* from) {
  const auto* bits = reinterpret_cast<const Bits*>(from);
  if constexpr (C == Cache::l1) {
    return *bits;
  } else if constexpr (C == Cache::l2) {
    return __ldcg(bits);
  } else {
    return __ldcs(bits);
  }
}

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

// Acquire-release fence at device scope.
__device__ __forceinline__ void fence_acq_rel_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// 2^exponent by the hardware's approximation; results below 2^-126 are flushed to 0.
[[nodiscard]] __device__ __forceinline__ float exp2_approx(float exponent) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(exponent));
  return power;
}

// Prefetches the cache line of `from` into L2.
template <typename S>
__device__ __forceinline__ void prefetch_l2(const S* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(from)));
}

#endif

// std::bit_cast for device code.
template <typename To, typename From>
[[nodiscard]] __device__ __forceinline__ To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(static_cast<void*>(&to), &from, sizeof(To));
  return to;
}

// Two 16-bit elements, rounded and packed by one instruction, the first in the low half.
template <typename S>
[[nodiscard]] __device__ __forceinline__ unsigned narrow_and_pack(float first, float second) {
  if constexpr (std::is_same_v<S, __half>) {
    return bit_cast<unsigned>(__floats2half2_rn(first, second));
  } else {
    return bit_cast<unsigned>(__floats2bfloat162_rn(first, second));
  }
}

// Elements of a 16-byte vector.
template <typename S>
inline constexpr int VECTOR_SIZE = 16 / static_cast<int>(sizeof(S));

// N elements of 16 or 8 bytes in all. They stay packed in registers as they were loaded and are widened where they are
// used, so that many loads can be in flight.
template <typename S, int N = VECTOR_SIZE<S>>
struct Vector {
  using T = typename ComputeType<S>::type;
  static constexpr int WORDS = N * static_cast<int>(sizeof(S)) / 4;
  static_assert(WORDS == 4 || WORDS == 2);
  using Bits = std::conditional_t<WORDS == 4, uint4, uint2>;
  struct Words {
    unsigned word[WORDS];
  };

  Bits bits;

  __device__ __forceinline__ void widen(T (&to)[N]) const {
    const Words words = bit_cast<Words>(bits);
    if constexpr (std::is_same_v<S, double>) {
#pragma unroll
      for (int e = 0; e < N; ++e) {
        to[e] = bit_cast<double>(static_cast<unsigned long long>(words.word[2 * e + 1]) << 32 | words.word[2 * e]);
      }
    } else {
#pragma unroll
      for (int w = 0; w < WORDS; ++w) {
        if constexpr (std::is_same_v<S, float>) {
          to[w] = bit_cast<float>(words.word[w]);
        } else if constexpr (std::is_same_v<S, __nv_bfloat16>) {
          to[2 * w] = bit_cast<float>(words.word[w] << 16);
          to[2 * w + 1] = bit_cast<float>(words.word[w] & 0xffff0000u);
        } else {
          to[2 * w] = widened(bit_cast<__half>(static_cast<unsigned short>(words.word[w] & 0xffffu)));
          to[2 * w + 1] = widened(bit_cast<__half>(static_cast<unsigned short>(words.word[w] >> 16)));
        }
      }
    }
  }

  [[nodiscard]] static __device__ __forceinline__ Vector narrow(const T (&from)[N]) {
    Words words;
    if constexpr (std::is_same_v<S, double>) {
#pragma unroll
      for (int e = 0; e < N; ++e) {
        const auto wide = bit_cast<unsigned long long>(from[e]);
        words.word[2 * e] = static_cast<unsigned>(wide);
        words.word[2 * e + 1] = static_cast<unsigned>(wide >> 32);
      }
    } else {
#pragma unroll
      for (int w = 0; w < WORDS; ++w) {
        if constexpr (std::is_same_v<S, float>) {
          words.word[w] = bit_cast<unsigned>(from[w]);
        } else {
          words.word[w] = narrow_and_pack<S>(from[2 * w], from[2 * w + 1]);
        }
      }
    }
    return {bit_cast<Bits>(words)};
  }

  [[nodiscard]] static __device__ __forceinline__ Vector broadcast(T value) {
    T from[N];
#pragma unroll
    for (int e = 0; e < N; ++e) {
      from[e] = value;
    }
    return narrow(from);
  }
};

// A single element, for data that cannot be accessed by vectors.
template <typename S>
struct Vector<S, 1> {
  using T = typename ComputeType<S>::type;

  S bits;

  __device__ __forceinline__ void widen(T (&to)[1]) const { to[0] = widened(bits); }
  [[nodiscard]] static __device__ __forceinline__ Vector narrow(const T (&from)[1]) { return {narrowed<S>(from[0])}; }
  [[nodiscard]] static __device__ __forceinline__ Vector broadcast(T value) { return {narrowed<S>(value)}; }
};

template <typename S, int N = VECTOR_SIZE<S>, Cache C = Cache::l2>
[[nodiscard]] __device__ __forceinline__ Vector<S, N> load_vector(Pointer<const S> from) {
  if constexpr (N == 1) {
    return {from[0]};
  } else {
    return {load_bits<C, typename Vector<S, N>::Bits>(from)};
  }
}

template <typename S, int N>
__device__ __forceinline__ void store_vector(Pointer<S> to, const typename ComputeType<S>::type (&from)[N]) {
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
                                                    const typename ComputeType<S>::type (&from)[VECTOR_SIZE<S>]) {
  store_16_bytes_shared(to, Vector<S>::narrow(from).bits);
}

// Loads W consecutive elements of shared memory: one element, or aligned 16-byte vectors.
template <int W, typename T>
__device__ __forceinline__ void load_shared(Pointer<const T> from, T (&to)[W]) {
  if constexpr (W == 1) {
    to[0] = from[0];
  } else {
    constexpr int V = VECTOR_SIZE<T>;
    static_assert(W % V == 0);
#pragma unroll
    for (int first = 0; first < W; first += V) {
      T vector[V];
      Vector<T>{load_16_bytes_shared(from + first)}.widen(vector);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        to[first + e] = vector[e];
      }
    }
  }
}

}  // namespace pal_fast::cuda

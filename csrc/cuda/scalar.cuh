// The types of elements in memory, and the types they are computed in.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "storage.h"

namespace pal_fast::cuda {

template <typename S>
struct Computing {
  using type = float;
};
template <>
struct Computing<double> {
  using type = double;
};

__device__ __forceinline__ float widened(float value) { return value; }
__device__ __forceinline__ double widened(double value) { return value; }
__device__ __forceinline__ float widened(__half value) { return __half2float(value); }
__device__ __forceinline__ float widened(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename S, typename T>
__device__ __forceinline__ S narrowed(T value) {
  if constexpr (std::is_same_v<S, __half>) {
    return __float2half_rn(value);
  } else if constexpr (std::is_same_v<S, __nv_bfloat16>) {
    return __float2bfloat16_rn(value);
  } else {
    return value;
  }
}

// function.operator()<S>() of the type that elements have in memory.
template <typename Function>
auto with_storage(Storage storage, const Function& function) {
  switch (storage) {
    case Storage::float16:
      return function.template operator()<__half>();
    case Storage::bfloat16:
      return function.template operator()<__nv_bfloat16>();
    case Storage::float64:
      return function.template operator()<double>();
    default:
      return function.template operator()<float>();
  }
}

}  // namespace pal_fast::cuda

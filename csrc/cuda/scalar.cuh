// Storage types S, in which elements lie in memory, and the compute types T in which the arithmetic is done.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "cuda/storage.h"

namespace pal_fast::cuda {

// T of a storage type: double for double, float for all others.
template <typename S>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};

// S to T, exactly.
__device__ __forceinline__ float widened(float value) { return value; }
__device__ __forceinline__ double widened(double value) { return value; }
__device__ __forceinline__ float widened(__half value) { return __half2float(value); }
__device__ __forceinline__ float widened(__nv_bfloat16 value) { return __bfloat162float(value); }

// T to S, rounded to nearest even.
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

// Calls function.operator()<S>() for a storage type chosen at run time.
template <typename Function>
auto dispatch_storage(Storage storage, const Function& function) {
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

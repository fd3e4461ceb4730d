// Tensors as arguments of the CPU kernels: data pointers, null for absent and empty tensors.
#pragma once

#include "checks.h"
#include "cpu/storage.h"

namespace pal_fast::cpu {

[[nodiscard]] inline Storage storage_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Half:
      return Storage::float16;
    case ScalarType::BFloat16:
      return Storage::bfloat16;
    case ScalarType::Double:
      return Storage::float64;
    default:
      return Storage::float32;
  }
}

template <typename T>
[[nodiscard]] const T* data_or_null(const OptionalTensor& tensor) {
  return tensor && tensor->numel() > 0 ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

template <typename T = void>
[[nodiscard]] T* mutable_data_or_null(const Tensor& tensor) {
  return tensor.numel() > 0 ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

}  // namespace pal_fast::cpu

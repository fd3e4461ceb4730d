// Tensors as operators take them, and what kernels need of them: data pointers, types and memory format.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "options.h"

namespace pal_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The tensor's data, or null if it is absent or empty.
template <typename T = void>
[[nodiscard]] const T* data_or_null(const OptionalTensor& tensor) {
  return tensor && tensor->numel() > 0 ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

template <typename T = void>
[[nodiscard]] T* mutable_data_or_null(const OptionalTensor& tensor) {
  return tensor && tensor->numel() > 0 ? static_cast<T*>(tensor->mutable_data_ptr()) : nullptr;
}

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

// The compute type T of tensors of `dtype`, in which they are accumulated, too.
[[nodiscard]] inline ScalarType computing_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls work.template operator()<T>().
template <typename Work>
void dispatch_computing_type(ScalarType dtype, const Work& work) {
  dtype == ScalarType::Double ? work.template operator()<double>() : work.template operator()<float>();
}

// Whether a tensor is [B, C, H, W] with the strides of torch.channels_last; dimensions of size 1 may have any stride.
[[nodiscard]] inline bool is_channels_last(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  if (sizes.size() != 4) {
    return false;
  }
  int64_t expected = 1;
  for (const size_t axis : {1, 3, 2, 0}) {
    if (sizes[axis] != 1 && strides[axis] != expected) {
      return false;
    }
    expected *= sizes[axis];
  }
  return true;
}

}  // namespace pal_fast

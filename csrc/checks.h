// Argument checks. Each message names the argument, what is required and what was given.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <initializer_list>
#include <sstream>
#include <string>

#include "tensors.h"

namespace pal_fast {

template <typename Sizes>
[[nodiscard]] inline std::string shape_text(const Sizes& sizes) {
  std::ostringstream text;
  const char* separator = "";
  text << "[";
  for (const int64_t size : sizes) {
    text << separator << size;
    separator = ", ";
  }
  text << "]";
  return text.str();
}

[[nodiscard]] inline const char* dtype_name(ScalarType dtype) { return torch::headeronly::toString(dtype); }

inline void check_shape(const Tensor& tensor, const char* name, std::initializer_list<int64_t> wanted) {
  const auto sizes = tensor.sizes();
  bool equal = static_cast<size_t>(tensor.dim()) == wanted.size();
  for (size_t i = 0; equal && i < wanted.size(); ++i) {
    equal = sizes[i] == wanted.begin()[i];
  }
  STD_TORCH_CHECK(equal, name, " must have shape ", shape_text(wanted), ", got ", shape_text(sizes));
}

inline void check_dimensions(const Tensor& tensor, const char* name, int64_t wanted, const char* shape) {
  STD_TORCH_CHECK(tensor.dim() == wanted, name, " must have shape ", shape, ", got ", shape_text(tensor.sizes()));
}

inline void check_dtype(const Tensor& tensor, const char* name, ScalarType wanted) {
  STD_TORCH_CHECK(tensor.scalar_type() == wanted, name, " must be of dtype ", dtype_name(wanted), ", got ",
                  dtype_name(tensor.scalar_type()));
}

inline void check_dtype_in(const Tensor& tensor, const char* name, std::initializer_list<ScalarType> wanted) {
  std::ostringstream names;
  const char* separator = "";
  for (const ScalarType dtype : wanted) {
    if (tensor.scalar_type() == dtype) {
      return;
    }
    names << separator << dtype_name(dtype);
    separator = ", ";
  }
  STD_TORCH_CHECK(false, name, " must be one of ", names.str(), ", got ", dtype_name(tensor.scalar_type()));
}

inline void check_contiguous(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous, got strides ", shape_text(tensor.strides()),
                  " for shape ", shape_text(tensor.sizes()));
}

inline void check_same_device(const Tensor& tensor, const char* name, const Tensor& other, const char* other_name) {
  STD_TORCH_CHECK(tensor.device() == other.device(), name, " and ", other_name, " must be on the same device");
}

template <typename Choice>
[[nodiscard]] inline Choice check_choice(int64_t given, const char* name) {
  STD_TORCH_CHECK(given >= 0 && given < choices<Choice>, name, " must be an index from 0 to ", choices<Choice> - 1,
                  " (pal_fast/constants.py), got ", given);
  return static_cast<Choice>(given);
}

inline void check_positive(double given, const char* name) {
  STD_TORCH_CHECK(std::isfinite(given) && given > 0, name, " must be positive and finite, got ", given);
}

}  // namespace pal_fast

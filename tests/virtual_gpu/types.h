// The types that an instruction's name means, and operations on them.
#pragma once

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <type_traits>

#include "machine.h"

namespace virtual_gpu {

using Parts = std::vector<std::string>;

[[nodiscard]] inline bool has(const Parts& parts, const char* part) {
  return std::find(parts.begin(), parts.end(), part) != parts.end();
}

[[noreturn]] inline void unknown(const Parts& parts) {
  std::string name;
  for (const std::string& part : parts) {
    name += (name.empty() ? "" : ".") + part;
  }
  throw std::runtime_error("an instruction that the virtual GPU does not know: " + name);
}

// Calls `with` with a value of the type that a name like "f32" means.
template <typename With>
[[nodiscard]] Handler typed(const Parts& parts, const std::string& type, With with) {
  if (type == "f32") return with(float());
  if (type == "f64") return with(double());
  if (type == "s16") return with(int16_t());
  if (type == "s32") return with(int32_t());
  if (type == "s64") return with(int64_t());
  if (type == "u16" || type == "b16") return with(uint16_t());
  if (type == "u32" || type == "b32") return with(uint32_t());
  if (type == "u64" || type == "b64") return with(uint64_t());
  if (type == "pred") return with(bool());
  unknown(parts);
}

template <typename With>
[[nodiscard]] Handler numeric(const Parts& parts, With with) {
  return typed(parts, parts.back(), [&]<typename T>(T value) -> Handler {
    if constexpr (std::is_same_v<T, bool>) {
      unknown(parts);
    } else {
      return with(value);
    }
  });
}

template <typename With>
[[nodiscard]] Handler integral(const Parts& parts, With with) {
  return numeric(parts, [&]<typename T>(T value) -> Handler {
    if constexpr (std::is_integral_v<T>) {
      return with(value);
    } else {
      unknown(parts);
    }
  });
}

template <typename With>
[[nodiscard]] Handler floating(const Parts& parts, With with) {
  return numeric(parts, [&]<typename T>(T value) -> Handler {
    if constexpr (std::is_floating_point_v<T>) {
      return with(value);
    } else {
      unknown(parts);
    }
  });
}

template <typename T, typename Operation>
void unary(Thread& t, const Instruction& i) {
  write<T>(t, i.target[0], Operation()(read<T>(t, i.source[0])));
}
template <typename T, typename Operation>
void binary(Thread& t, const Instruction& i) {
  write<T>(t, i.target[0], Operation()(read<T>(t, i.source[0]), read<T>(t, i.source[1])));
}
template <typename T, typename Operation>
void ternary(Thread& t, const Instruction& i) {
  write<T>(t, i.target[0], Operation()(read<T>(t, i.source[0]), read<T>(t, i.source[1]), read<T>(t, i.source[2])));
}

// Of integers modulo 2^bits.
template <typename T>
using Wrapping = typename std::conditional_t<std::is_integral_v<T>, std::make_unsigned<T>, std::type_identity<T>>::type;

struct Add {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<T>(static_cast<Wrapping<T>>(a) + static_cast<Wrapping<T>>(b));
  }
};
struct Sub {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<T>(static_cast<Wrapping<T>>(a) - static_cast<Wrapping<T>>(b));
  }
};
struct Mul {
  template <typename T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>) {
      return a * b;
    } else {
      return static_cast<T>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
    }
  }
};
struct MulHigh {
  template <typename T>
  T operator()(T a, T b) const {
    using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b) >> (8 * sizeof(T)));
  }
};
struct MulAdd {
  template <typename T>
  T operator()(T a, T b, T c) const {
    return Add()(Mul()(a, b), c);
  }
};
struct FusedMulAdd {
  template <typename T>
  T operator()(T a, T b, T c) const {
    return std::fma(a, b, c);
  }
};
struct FusedMulAddDown {
  template <typename T>
  T operator()(T a, T b, T c) const {
    volatile T x = a, y = b, z = c;
    std::fesetround(FE_DOWNWARD);
    volatile T result = std::fma(x, y, z);
    std::fesetround(FE_TONEAREST);
    return result;
  }
};
struct Div {
  template <typename T>
  T operator()(T a, T b) const {
    if constexpr (std::is_integral_v<T>) {
      if (b == 0) {
        throw std::runtime_error("a division by zero");
      }
    }
    return static_cast<T>(a / b);
  }
};
struct Rem {
  template <typename T>
  T operator()(T a, T b) const {
    if (b == 0) {
      throw std::runtime_error("a division by zero");
    }
    return static_cast<T>(a % b);
  }
};
struct Least {
  template <typename T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>) {
      return std::fmin(a, b);
    } else {
      return std::min(a, b);
    }
  }
};
struct Most {
  template <typename T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>) {
      return std::fmax(a, b);
    } else {
      return std::max(a, b);
    }
  }
};
struct LeastOrNan {
  template <typename T>
  T operator()(T a, T b) const {
    return std::isnan(a) || std::isnan(b) ? std::numeric_limits<T>::quiet_NaN() : std::fmin(a, b);
  }
};
struct MostOrNan {
  template <typename T>
  T operator()(T a, T b) const {
    return std::isnan(a) || std::isnan(b) ? std::numeric_limits<T>::quiet_NaN() : std::fmax(a, b);
  }
};
struct Abs {
  template <typename T>
  T operator()(T a) const {
    return static_cast<T>(std::abs(a));
  }
};
struct Neg {
  template <typename T>
  T operator()(T a) const {
    return static_cast<T>(-a);
  }
};
struct Not {
  template <typename T>
  T operator()(T a) const {
    if constexpr (std::is_same_v<T, bool>) {
      return !a;
    } else {
      return static_cast<T>(~a);
    }
  }
};
struct And {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<T>(a & b);
  }
};
struct Or {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<T>(a | b);
  }
};
struct Xor {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<T>(a ^ b);
  }
};
// PTX: the sign of the first on the second.
struct SignOnto {
  template <typename T>
  T operator()(T a, T b) const {
    return std::copysign(b, a);
  }
};
struct Exp2 {
  template <typename T>
  T operator()(T a) const {
    return std::exp2(a);
  }
};
struct Log2 {
  template <typename T>
  T operator()(T a) const {
    return std::log2(a);
  }
};
struct Sqrt {
  template <typename T>
  T operator()(T a) const {
    return std::sqrt(a);
  }
};
struct ReciprocalSqrt {
  template <typename T>
  T operator()(T a) const {
    return 1 / std::sqrt(a);
  }
};
struct Reciprocal {
  template <typename T>
  T operator()(T a) const {
    return 1 / a;
  }
};

// Each refuses by name what no kernel here uses.
[[nodiscard]] Handler arithmetic_of(const Parts& parts);  // null if it is none
[[nodiscard]] Handler comparison_of(const Parts& parts);
[[nodiscard]] Handler selection_of(const Parts& parts);
[[nodiscard]] Handler move_of(const Parts& parts);
[[nodiscard]] Handler conversion_of(const Parts& parts);
[[nodiscard]] Handler memory_operation_of(const Parts& parts, Instruction& instruction);  // null if it is none

}  // namespace virtual_gpu

// Arithmetic and bitwise instructions.
#include "types.h"

namespace virtual_gpu {
namespace {

template <typename T>
void shift_left(Thread& t, const Instruction& i) {
  const auto amount = read<uint32_t>(t, i.source[1]);
  write<T>(t, i.target[0], amount >= 8 * sizeof(T) ? T{0} : static_cast<T>(read<T>(t, i.source[0]) << amount));
}
template <typename T>
void shift_right(Thread& t, const Instruction& i) {
  const auto amount = std::min<uint32_t>(read<uint32_t>(t, i.source[1]), 8 * sizeof(T));
  const auto value = static_cast<__int128>(read<T>(t, i.source[0]));
  write<T>(t, i.target[0], static_cast<T>(value >> amount));
}
template <typename T>
void extract_bits(Thread& t, const Instruction& i) {
  const auto first = read<uint32_t>(t, i.source[1]) & 0xffu, count = read<uint32_t>(t, i.source[2]) & 0xffu;
  const auto value = static_cast<__int128>(read<T>(t, i.source[0])) >> first;
  const __int128 kept = count >= 64 ? value : value & ((static_cast<__int128>(1) << count) - 1);
  const bool negative = std::is_signed_v<T> && count > 0 && (kept >> (count - 1) & 1) != 0;
  write<T>(t, i.target[0], static_cast<T>(negative ? kept - (static_cast<__int128>(1) << count) : kept));
}
// lop3: any function of three bits, applied bitwise.
void logic_of_three(Thread& t, const Instruction& i) {
  const auto a = read<uint32_t>(t, i.source[0]), b = read<uint32_t>(t, i.source[1]), c = read<uint32_t>(t, i.source[2]);
  const auto table = read<uint32_t>(t, i.source[3]);
  uint32_t result = 0;
  for (int bit = 0; bit < 32; ++bit) {
    const uint32_t row = (a >> bit & 1u) << 2 | (b >> bit & 1u) << 1 | (c >> bit & 1u);
    result |= (table >> row & 1u) << bit;
  }
  write<uint32_t>(t, i.target[0], result);
}
void permute_bytes(Thread& t, const Instruction& i) {
  const uint64_t bytes = read<uint32_t>(t, i.source[0]) | static_cast<uint64_t>(read<uint32_t>(t, i.source[1])) << 32;
  const auto selector = read<uint32_t>(t, i.source[2]);
  uint32_t result = 0;
  for (int byte = 0; byte < 4; ++byte) {
    const uint32_t choice = selector >> (4 * byte) & 0xfu;
    auto chosen = static_cast<uint32_t>(bytes >> (8 * (choice & 7u)) & 0xffu);
    if ((choice & 8u) != 0) {
      chosen = (chosen & 0x80u) != 0 ? 0xffu : 0;
    }
    result |= chosen << (8 * byte);
  }
  write<uint32_t>(t, i.target[0], result);
}
template <bool LEFT>
void funnel_shift(Thread& t, const Instruction& i) {
  const uint64_t both = read<uint32_t>(t, i.source[0]) | static_cast<uint64_t>(read<uint32_t>(t, i.source[1])) << 32;
  const auto amount = read<uint32_t>(t, i.source[2]) & 31u;
  write<uint32_t>(t, i.target[0], static_cast<uint32_t>(LEFT ? both << amount >> 32 : both >> amount));
}

template <typename T, typename Wide, bool ADD>
void widening_product(Thread& t, const Instruction& i) {
  const Wide product = static_cast<Wide>(read<T>(t, i.source[0])) * static_cast<Wide>(read<T>(t, i.source[1]));
  write<Wide>(t, i.target[0], ADD ? static_cast<Wide>(product + read<Wide>(t, i.source[2])) : product);
}

[[nodiscard]] Handler product(const Parts& parts) {
  const bool add = parts[0] == "mad";
  if (has(parts, "wide")) {
    const std::string& type = parts.back();
    if (type == "s32")
      return add ? widening_product<int32_t, int64_t, true> : widening_product<int32_t, int64_t, false>;
    if (type == "u32") {
      return add ? widening_product<uint32_t, uint64_t, true> : widening_product<uint32_t, uint64_t, false>;
    }
    if (type == "s16")
      return add ? widening_product<int16_t, int32_t, true> : widening_product<int16_t, int32_t, false>;
    if (type == "u16") {
      return add ? widening_product<uint16_t, uint32_t, true> : widening_product<uint16_t, uint32_t, false>;
    }
    unknown(parts);
  }
  if (has(parts, "hi")) {
    return add ? (unknown(parts), nullptr)
               : integral(parts, []<typename T>(T) -> Handler { return binary<T, MulHigh>; });
  }
  return numeric(parts, [&]<typename T>(T) -> Handler { return add ? ternary<T, MulAdd> : binary<T, Mul>; });
}

// Operations on one 16-bit number or a packed pair.
void magnitudes_of_halves(Thread& t, const Instruction& i) {
  write<uint32_t>(t, i.target[0], read<uint32_t>(t, i.source[0]) & 0x7fff7fffu);
}

}  // namespace

Handler arithmetic_of(const Parts& parts) {
  const std::string& name = parts[0];
  const auto arithmetic = [&](auto operation) {
    using Operation = decltype(operation);
    return numeric(parts, []<typename T>(T) -> Handler { return binary<T, Operation>; });
  };
  const auto of_one = [&](auto operation) {
    using Operation = decltype(operation);
    return floating(parts, []<typename T>(T) -> Handler { return unary<T, Operation>; });
  };
  const auto bitwise = [&](auto operation) {
    using Operation = decltype(operation);
    return typed(parts, parts.back(), [&]<typename T>(T) -> Handler {
      if constexpr (std::is_integral_v<T>) {
        return binary<T, Operation>;
      } else {
        unknown(parts);
      }
    });
  };
  if (name == "abs" && parts.back().find("f16") != std::string::npos) return magnitudes_of_halves;
  if (name == "add") return arithmetic(Add());
  if (name == "sub") return arithmetic(Sub());
  if (name == "mul" || name == "mad") return product(parts);
  if (name == "fma") {
    return floating(parts, [&]<typename T>(T) -> Handler {
      if (has(parts, "rm")) return ternary<T, FusedMulAddDown>;
      if (has(parts, "rn")) return ternary<T, FusedMulAdd>;
      unknown(parts);
    });
  }
  if (name == "div") return arithmetic(Div());
  if (name == "rem") return integral(parts, []<typename T>(T) -> Handler { return binary<T, Rem>; });
  if (name == "min" || name == "max") {
    if (has(parts, "NaN")) {
      return floating(parts, [&]<typename T>(T) -> Handler {
        return name == "min" ? binary<T, LeastOrNan> : binary<T, MostOrNan>;
      });
    }
    return name == "min" ? arithmetic(Least()) : arithmetic(Most());
  }
  if (name == "abs" || name == "neg") {
    return numeric(parts, [&]<typename T>(T) -> Handler {
      if constexpr (std::is_unsigned_v<T>) {
        unknown(parts);
      } else {
        return name == "abs" ? unary<T, Abs> : unary<T, Neg>;
      }
    });
  }
  if (name == "copysign") return floating(parts, []<typename T>(T) -> Handler { return binary<T, SignOnto>; });
  if (name == "ex2") return of_one(Exp2());
  if (name == "lg2") return of_one(Log2());
  if (name == "sqrt") return of_one(Sqrt());
  if (name == "rsqrt") return of_one(ReciprocalSqrt());
  if (name == "rcp") return of_one(Reciprocal());
  if (name == "and") return bitwise(And());
  if (name == "or") return bitwise(Or());
  if (name == "xor") return bitwise(Xor());
  if (name == "not") {
    return typed(parts, parts.back(), [&]<typename T>(T) -> Handler {
      if constexpr (std::is_integral_v<T>) {
        return unary<T, Not>;
      } else {
        unknown(parts);
      }
    });
  }
  if (name == "shl") return integral(parts, []<typename T>(T) -> Handler { return shift_left<T>; });
  if (name == "shr") return integral(parts, []<typename T>(T) -> Handler { return shift_right<T>; });
  if (name == "bfe") return integral(parts, []<typename T>(T) -> Handler { return extract_bits<T>; });
  if (name == "lop3") return logic_of_three;
  if (name == "prmt") return permute_bytes;
  if (name == "shf") return has(parts, "l") ? funnel_shift<true> : funnel_shift<false>;
  return nullptr;
}

}  // namespace virtual_gpu

// Moves between registers and conversions between types.
#include <cstring>

#include "half.h"
#include "types.h"

namespace virtual_gpu {
namespace {

// mov, including packing parts into a register and unpacking a register into parts.
template <typename T>
void move(Thread& t, const Instruction& i) {
  if (i.pack > 0) {
    const int bits = 8 * static_cast<int>(sizeof(T)) / i.pack;
    uint64_t whole = 0;
    for (int k = 0; k < i.pack; ++k) {
      const uint64_t mask = bits == 64 ? ~0ull : (1ull << bits) - 1;
      whole |= (t.slots[i.source[k]] & mask) << (k * bits);
    }
    t.slots[i.target[0]] = whole;
  } else if (i.wide > 0) {
    const int bits = 8 * static_cast<int>(sizeof(T)) / i.wide;
    for (int k = 0; k < i.wide; ++k) {
      t.slots[i.target[k]] = t.slots[i.source[0]] >> (k * bits) & ((1ull << bits) - 1);
    }
  } else {
    write<T>(t, i.target[0], read<T>(t, i.source[0]));
  }
}

// Conversions.
template <typename To, typename From, bool SATURATES, int ROUNDING>
void convert(Thread& t, const Instruction& i) {
  const From from = read<From>(t, i.source[0]);
  To to;
  if constexpr (std::is_floating_point_v<From> && std::is_integral_v<To>) {
    const double rounded = ROUNDING == 0   ? std::trunc(static_cast<double>(from))
                           : ROUNDING == 1 ? std::nearbyint(static_cast<double>(from))
                           : ROUNDING == 2 ? std::floor(static_cast<double>(from))
                                           : std::ceil(static_cast<double>(from));
    const auto least = static_cast<double>(std::numeric_limits<To>::min());
    const auto most = static_cast<double>(std::numeric_limits<To>::max());
    to = std::isnan(rounded) ? To{0}
         : rounded <= least  ? std::numeric_limits<To>::min()
         : rounded >= most   ? std::numeric_limits<To>::max()
                             : static_cast<To>(rounded);
  } else if constexpr (std::is_floating_point_v<From> && std::is_floating_point_v<To>) {
    const From rounded = ROUNDING == 1 || sizeof(From) != sizeof(To) ? from
                         : ROUNDING == 2                             ? std::floor(from)
                         : ROUNDING == 3                             ? std::ceil(from)
                         : ROUNDING == 4                             ? std::nearbyint(from)
                                                                     : from;
    to = static_cast<To>(rounded);
    if (SATURATES) {
      to = std::isnan(to) ? To{0} : std::min(std::max(to, To{0}), To{1});
    }
  } else {
    to = static_cast<To>(from);
  }
  // An integer narrower than its register is extended into it.
  if constexpr (std::is_integral_v<To> && std::is_signed_v<To>) {
    write<int64_t>(t, i.target[0], to);
  } else {
    write<To>(t, i.target[0], to);
  }
}

void widen_half(Thread& t, const Instruction& i) {
  write<float>(t, i.target[0], from_half(read<uint16_t>(t, i.source[0])));
}
void narrow_half(Thread& t, const Instruction& i) {
  write<uint16_t>(t, i.target[0], to_half(read<float>(t, i.source[0])));
}
void widen_bfloat(Thread& t, const Instruction& i) {
  write<uint32_t>(t, i.target[0], static_cast<uint32_t>(read<uint16_t>(t, i.source[0])) << 16);
}
void narrow_bfloat(Thread& t, const Instruction& i) {
  write<uint16_t>(t, i.target[0], to_bfloat(read<float>(t, i.source[0])));
}
void round_to_tf32(Thread& t, const Instruction& i) {
  const auto bits = read<uint32_t>(t, i.source[0]);
  write<uint32_t>(t, i.target[0], std::isfinite(read<float>(t, i.source[0])) ? (bits + 0x1000u) & ~0x1fffu : bits);
}
// The first operand goes to the upper half.
template <uint16_t (*NARROWED)(float)>
void narrow_pair(Thread& t, const Instruction& i) {
  const uint32_t upper = NARROWED(read<float>(t, i.source[0])), lower = NARROWED(read<float>(t, i.source[1]));
  write<uint32_t>(t, i.target[0], upper << 16 | lower);
}

}  // namespace

Handler conversion_of(const Parts& parts) {
  const std::string &to = parts[parts.size() - 2], &from = parts.back();
  if (to == "f32" && from == "f16") return widen_half;
  if (to == "f16" && from == "f32" && has(parts, "rn")) return narrow_half;
  if (to == "f32" && from == "bf16") return widen_bfloat;
  if (to == "bf16" && from == "f32" && has(parts, "rn")) return narrow_bfloat;
  if (to == "f16x2" && has(parts, "rn")) return narrow_pair<to_half>;
  if (to == "bf16x2" && has(parts, "rn")) return narrow_pair<to_bfloat>;
  if (to == "tf32") return round_to_tf32;
  const auto with_rounding = [&]<typename To, typename From>(To, From) -> Handler {
    if (has(parts, "sat")) return convert<To, From, true, 1>;
    if (has(parts, "rzi")) return convert<To, From, false, 0>;
    if (has(parts, "rmi")) return convert<To, From, false, 2>;
    if (has(parts, "rpi")) return convert<To, From, false, 3>;
    if (has(parts, "rni")) return convert < To, From, false, std::is_floating_point_v<To> ? 4 : 1 > ;
    if (has(parts, "rz") || has(parts, "rm") || has(parts, "rp")) unknown(parts);
    return convert<To, From, false, 1>;
  };
  const auto of_byte = [](const std::string& type) { return type == "u8" || type == "s8"; };
  const auto source = [&]<typename To>(To to_value) -> Handler {
    if (of_byte(from)) {
      return from == "u8" ? with_rounding(to_value, uint8_t()) : with_rounding(to_value, int8_t());
    }
    return typed(parts, from, [&]<typename From>(From value) -> Handler {
      if constexpr (std::is_same_v<To, bool> || std::is_same_v<From, bool>) {
        unknown(parts);
      } else {
        return with_rounding(to_value, value);
      }
    });
  };
  if (of_byte(to)) {
    return to == "u8" ? source(uint8_t()) : source(int8_t());
  }
  return typed(parts, to, source);
}

Handler move_of(const Parts& parts) {
  return typed(parts, parts.back(), []<typename T>(T) -> Handler { return move<T>; });
}

}  // namespace virtual_gpu

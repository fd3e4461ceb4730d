// Comparisons and selections.
#include "half.h"
#include "types.h"

namespace virtual_gpu {
namespace {

// Comparisons: with a NaN the ordered ones are false, the unordered ones (equ, ltu, ...) true.
struct Equal {
  template <typename T>
  bool operator()(T a, T b) const {
    return a == b;
  }
};
struct NotEqual {
  template <typename T>
  bool operator()(T a, T b) const {
    return a < b || a > b;
  }
};
struct Less {
  template <typename T>
  bool operator()(T a, T b) const {
    return a < b;
  }
};
struct LessOrEqual {
  template <typename T>
  bool operator()(T a, T b) const {
    return a <= b;
  }
};
struct Greater {
  template <typename T>
  bool operator()(T a, T b) const {
    return a > b;
  }
};
struct GreaterOrEqual {
  template <typename T>
  bool operator()(T a, T b) const {
    return a >= b;
  }
};
struct Unordered {
  template <typename T>
  bool operator()(T a, T b) const {
    return a != a || b != b;
  }
};
template <typename Opposite>
struct Negated {
  template <typename T>
  bool operator()(T a, T b) const {
    return !Opposite()(a, b);
  }
};

template <typename T, typename Comparison>
void compare(Thread& t, const Instruction& i) {
  bool result = Comparison()(read<T>(t, i.source[0]), read<T>(t, i.source[1]));
  write<bool>(t, i.target[0], result);
  if (i.targets == 2) {
    write<bool>(t, i.target[1], !result);
  }
}
template <typename T, typename Comparison, typename Logic>
void compare_and(Thread& t, const Instruction& i) {
  const bool result = Comparison()(read<T>(t, i.source[0]), read<T>(t, i.source[1]));
  const bool other = read<bool>(t, i.source[2]);
  write<bool>(t, i.target[0], Logic()(result, other));
  if (i.targets == 2) {
    write<bool>(t, i.target[1], Logic()(!result, other));
  }
}

template <typename T, typename Comparison>
[[nodiscard]] Handler comparison(const Parts& parts) {
  if (has(parts, "and")) return compare_and<T, Comparison, And>;
  if (has(parts, "or")) return compare_and<T, Comparison, Or>;
  if (has(parts, "xor")) return compare_and<T, Comparison, Xor>;
  return compare<T, Comparison>;
}

// Comparisons of 16-bit numbers, one or a packed pair per register.
template <float (*WIDENED)(uint16_t), typename Comparison>
void compare_halves(Thread& t, const Instruction& i) {
  const auto a = read<uint32_t>(t, i.source[0]), b = read<uint32_t>(t, i.source[1]);
  for (int k = 0; k < i.targets; ++k) {
    const float of_a = WIDENED(static_cast<uint16_t>(a >> (16 * k))),
                of_b = WIDENED(static_cast<uint16_t>(b >> (16 * k)));
    write<bool>(t, i.target[k], Comparison()(of_a, of_b));
  }
}
template <float (*WIDENED)(uint16_t)>
[[nodiscard]] Handler comparison_of_halves(const Parts& parts) {
  if (parts.size() != 3) unknown(parts);
  if (parts[1] == "lt") return compare_halves<WIDENED, Less>;
  if (parts[1] == "gt") return compare_halves<WIDENED, Greater>;
  if (parts[1] == "eq") return compare_halves<WIDENED, Equal>;
  if (parts[1] == "ne") return compare_halves<WIDENED, NotEqual>;
  if (parts[1] == "neu") return compare_halves<WIDENED, Negated<Equal>>;
  unknown(parts);
}

template <typename T>
void select(Thread& t, const Instruction& i) {
  write<T>(t, i.target[0], read<T>(t, i.source[read<bool>(t, i.source[2]) ? 0 : 1]));
}

}  // namespace

Handler comparison_of(const Parts& parts) {
  const std::string& how = parts[1];
  if (parts.back() == "f16" || parts.back() == "f16x2") return comparison_of_halves<from_half>(parts);
  if (parts.back() == "bf16" || parts.back() == "bf16x2") return comparison_of_halves<from_bfloat>(parts);
  return numeric(parts, [&]<typename T>(T) -> Handler {
    if (how == "eq") return comparison<T, Equal>(parts);
    if (how == "ne") {
      return std::is_floating_point_v<T> ? comparison<T, NotEqual>(parts) : comparison<T, Negated<Equal>>(parts);
    }
    if (how == "lt" || how == "lo") return comparison<T, Less>(parts);
    if (how == "le" || how == "ls") return comparison<T, LessOrEqual>(parts);
    if (how == "gt" || how == "hi") return comparison<T, Greater>(parts);
    if (how == "ge" || how == "hs") return comparison<T, GreaterOrEqual>(parts);
    if (how == "equ") return comparison<T, Negated<NotEqual>>(parts);
    if (how == "neu") return comparison<T, Negated<Equal>>(parts);
    if (how == "ltu") return comparison<T, Negated<GreaterOrEqual>>(parts);
    if (how == "leu") return comparison<T, Negated<Greater>>(parts);
    if (how == "gtu") return comparison<T, Negated<LessOrEqual>>(parts);
    if (how == "geu") return comparison<T, Negated<Less>>(parts);
    if (how == "nan") return comparison<T, Unordered>(parts);
    if (how == "num") return comparison<T, Negated<Unordered>>(parts);
    unknown(parts);
  });
}

Handler selection_of(const Parts& parts) {
  return typed(parts, parts.back(), []<typename T>(T) -> Handler { return select<T>; });
}

}  // namespace virtual_gpu

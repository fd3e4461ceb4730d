// Vectors of the width of the instruction set that the including file compiles for, and their loads and stores.
// To be included by batch_norm_loops.h only, inside its namespace: every instruction set has a copy of its own.

// A vector of T as wide as a register.
template <typename T>
struct LanesOf {
  typedef T type __attribute__((vector_size(PAL_FAST_VECTOR_BYTES)));
  static constexpr int64_t count = PAL_FAST_VECTOR_BYTES / static_cast<int64_t>(sizeof(T));
};
template <typename T>
using Lanes = typename LanesOf<T>::type;
template <typename T>
inline constexpr int64_t lanes = LanesOf<T>::count;

// `count` elements of Storage beside each other.
template <typename Storage, int64_t Count>
struct Packed {
  typedef Storage type __attribute__((vector_size(Count * sizeof(Storage))));
};

// The type in which a 16-bit float is stored, for the compiler's conversions.
struct BrainFloat;

template <typename S, typename T>
[[gnu::always_inline]] inline Lanes<T> widen(const typename Packed<S, lanes<T>>::type& packed) {
  return __builtin_convertvector(packed, Lanes<T>);
}

[[gnu::always_inline]] inline Lanes<float> widen_brain_float(const typename Packed<uint16_t, lanes<float>>::type& packed) {
  using Bits = Lanes<uint32_t>;
  return reinterpret_cast<Lanes<float>>(__builtin_convertvector(packed, Bits) << 16);
}

// Round to nearest, ties to even; NaN stays NaN.
[[gnu::always_inline]] inline typename Packed<uint16_t, lanes<float>>::type narrow_brain_float(Lanes<float> value) {
  using Bits = Lanes<uint32_t>;
  const Bits bits = reinterpret_cast<Bits>(value);
  const Bits rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const Bits quiet = Bits{} + 0x7FC0u;
  const Bits chosen = value == value ? rounded : quiet;
  return __builtin_convertvector(chosen, typename Packed<uint16_t, lanes<float>>::type);
}

// Loads and stores of lanes<T> elements stored as S, or of the first n of them (the others 0).
template <typename S, typename T>
struct Memory {
  using Stored = typename Packed<S, lanes<T>>::type;
  [[gnu::always_inline]] static Lanes<T> load(const S* from) {
    Stored packed;
    __builtin_memcpy(&packed, from, sizeof(packed));
    return widen<S, T>(packed);
  }
  [[gnu::always_inline]] static void store(S* to, Lanes<T> value) {
    const Stored packed = __builtin_convertvector(value, Stored);
    __builtin_memcpy(to, &packed, sizeof(packed));
  }
};

template <>
struct Memory<BrainFloat, float> {
  using Stored = typename Packed<uint16_t, lanes<float>>::type;
  [[gnu::always_inline]] static Lanes<float> load(const uint16_t* from) {
    Stored packed;
    __builtin_memcpy(&packed, from, sizeof(packed));
    return widen_brain_float(packed);
  }
  [[gnu::always_inline]] static void store(uint16_t* to, Lanes<float> value) {
    const Stored packed = narrow_brain_float(value);
    __builtin_memcpy(to, &packed, sizeof(packed));
  }
};

template <typename S>
struct StoredAs {
  using type = S;
};
template <>
struct StoredAs<BrainFloat> {
  using type = uint16_t;
};

template <typename S, typename T>
[[gnu::always_inline]] inline Lanes<T> load(const typename StoredAs<S>::type* from, int64_t n) {
  if (n == lanes<T>) [[likely]] {
    return Memory<S, T>::load(from);
  }
  typename StoredAs<S>::type padded[lanes<T>] = {};
  for (int64_t i = 0; i < n; ++i) {
    padded[i] = from[i];
  }
  return Memory<S, T>::load(padded);
}

template <typename S, typename T>
[[gnu::always_inline]] inline void store(typename StoredAs<S>::type* to, Lanes<T> value, int64_t n) {
  if (n == lanes<T>) [[likely]] {
    Memory<S, T>::store(to, value);
    return;
  }
  typename StoredAs<S>::type padded[lanes<T>];
  Memory<S, T>::store(padded, value);
  for (int64_t i = 0; i < n; ++i) {
    to[i] = padded[i];
  }
}

template <typename T>
[[gnu::always_inline]] inline Lanes<T> lane_numbers() {
  Lanes<T> numbers;
  for (int64_t i = 0; i < lanes<T>; ++i) {
    numbers[i] = static_cast<T>(i);
  }
  return numbers;
}

// The lanes 0..n-1 of `value`, the others 0.
template <typename T>
[[gnu::always_inline]] inline Lanes<T> first(Lanes<T> value, int64_t n) {
  if (n == lanes<T>) [[likely]] {
    return value;
  }
  return lane_numbers<T>() < static_cast<T>(n) ? value : Lanes<T>{};
}

template <typename T>
[[gnu::always_inline]] inline double total(Lanes<T> value) {
  double sum = 0;
  for (int64_t i = 0; i < lanes<T>; ++i) {
    sum += static_cast<double>(value[i]);
  }
  return sum;
}

// Vectors of the width of the instruction set that the including file compiles for, and their loads and stores.
// To be included by *_instances.h only, inside their namespace: every instruction set has a copy of its own.

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

// lanes<T> elements stored as S.
template <typename S, typename T>
struct Memory {
  using Convert = Conversion<S, lanes<T>>;
  using Vector = Packed<Stored<S>, lanes<T>>;
  [[gnu::always_inline]] static Lanes<T> load(const Stored<S>* from) {
    Vector packed;
    __builtin_memcpy(&packed, from, sizeof(packed));
    return widen(packed);
  }
  [[gnu::always_inline]] static Lanes<T> widen(Vector packed) {
    return to_computed<T, lanes<T>, typename Convert::Element>(Convert::widen(packed));
  }
  [[gnu::always_inline]] static Vector pack(Lanes<T> value) {
    return Convert::narrow(__builtin_convertvector(value, typename Convert::Values));
  }
};

// Loads and stores of lanes<T> elements stored as S, or of the first n of them (the others 0).
template <typename S, typename T>
[[gnu::always_inline]] inline Lanes<T> load(const Stored<S>* from, int64_t n) {
  if (n == lanes<T>) [[likely]] {
    return Memory<S, T>::load(from);
  }
#if PAL_FAST_VECTOR_BYTES == 64
  using Vector = typename Memory<S, T>::Vector;
  if constexpr (sizeof(Vector) == 64) {
    const __mmask64 mask = (uint64_t{1} << (n * sizeof(Stored<S>))) - 1;
    return Memory<S, T>::widen(reinterpret_cast<Vector>(_mm512_maskz_loadu_epi8(mask, from)));
  } else if constexpr (sizeof(Vector) == 32) {
    const auto mask = static_cast<__mmask32>((uint64_t{1} << (n * sizeof(Stored<S>))) - 1);
    return Memory<S, T>::widen(reinterpret_cast<Vector>(_mm256_maskz_loadu_epi8(mask, from)));
  } else {
    const auto mask = static_cast<__mmask16>((uint64_t{1} << (n * sizeof(Stored<S>))) - 1);
    return Memory<S, T>::widen(reinterpret_cast<Vector>(_mm_maskz_loadu_epi8(mask, from)));
  }
#else
  Stored<S> padded[lanes<T>] = {};
  for (int64_t i = 0; i < n; ++i) {
    padded[i] = from[i];
  }
  return Memory<S, T>::load(padded);
#endif
}

template <typename S, typename T>
[[gnu::always_inline]] inline void store(Stored<S>* to, Lanes<T> value, int64_t n) {
  const auto packed = Memory<S, T>::pack(value);
  if (n == lanes<T>) [[likely]] {
    __builtin_memcpy(to, &packed, sizeof(packed));
    return;
  }
#if PAL_FAST_VECTOR_BYTES == 64
  if constexpr (sizeof(packed) == 64) {
    const __mmask64 mask = (uint64_t{1} << (n * sizeof(Stored<S>))) - 1;
    _mm512_mask_storeu_epi8(to, mask, reinterpret_cast<__m512i>(packed));
  } else if constexpr (sizeof(packed) == 32) {
    const auto mask = static_cast<__mmask32>((uint64_t{1} << (n * sizeof(Stored<S>))) - 1);
    _mm256_mask_storeu_epi8(to, mask, reinterpret_cast<__m256i>(packed));
  } else {
    const auto mask = static_cast<__mmask16>((uint64_t{1} << (n * sizeof(Stored<S>))) - 1);
    _mm_mask_storeu_epi8(to, mask, reinterpret_cast<__m128i>(packed));
  }
#else
  for (int64_t i = 0; i < n; ++i) {
    to[i] = packed[i];
  }
#endif
}

// Starts to fetch what a loop over `from` will want soon: the processor's own prefetching stops at the end of a page.
template <typename Element>
[[gnu::always_inline]] inline void prefetch(const Element* from) {
  constexpr int64_t AHEAD = 2048;  // bytes
  __builtin_prefetch(reinterpret_cast<const char*>(from) + AHEAD);
}

// A whole vector, past the cache where the processor can; `to` is aligned to the vector's bytes. Needs
// streams_done() before others may read.
template <typename S, typename T>
[[gnu::always_inline]] inline void stream(Stored<S>* to, Lanes<T> value) {
  const auto packed = Memory<S, T>::pack(value);
#if PAL_FAST_VECTOR_BYTES == 64
  if constexpr (sizeof(packed) == 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<__m512i>(packed));
    return;
  }
#endif
#if PAL_FAST_VECTOR_BYTES >= 32
  if constexpr (sizeof(packed) == 32) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(packed));
    return;
  }
#endif
  __builtin_memcpy(to, &packed, sizeof(packed));
}

inline void streams_done() {
#if PAL_FAST_VECTOR_BYTES >= 32
  _mm_sfence();
#endif
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

[[nodiscard]] constexpr int64_t at_least_one(int64_t n) { return n < 1 ? 1 : n; }
[[nodiscard]] constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// SIMD vectors (GCC's vector extension) as wide as the registers of the instruction set that is compiled for, and their
// loads and stores. To be included by the two instances.h only, inside their namespace: every instruction set has its
// own copy.

// A register of T.
template <typename T>
struct SimdOf {
  typedef T type __attribute__((vector_size(PAL_FAST_VECTOR_BYTES)));
  static constexpr int64_t count = PAL_FAST_VECTOR_BYTES / static_cast<int64_t>(sizeof(T));
};
template <typename T>
using Simd = typename SimdOf<T>::type;
template <typename T>
inline constexpr int64_t lanes = SimdOf<T>::count;

// Loads lanes<T> elements of storage type S as T, and packs them for a store.
template <typename S, typename T>
struct SimdMemory {
  using Convert = Conversion<S, lanes<T>>;
  using Vector = Packed<StorageType<S>, lanes<T>>;
  [[gnu::always_inline]] static Simd<T> load(const StorageType<S>* from) {
    Vector packed;
    __builtin_memcpy(&packed, from, sizeof(packed));
    return widen(packed);
  }
  [[gnu::always_inline]] static Simd<T> widen(Vector packed) {
    return to_compute_type<T, lanes<T>, typename Convert::Element>(Convert::widen(packed));
  }
  [[gnu::always_inline]] static Vector pack(Simd<T> value) {
    return Convert::narrow(__builtin_convertvector(value, typename Convert::Values));
  }
};

// Loads and stores of the first n <= lanes<T> elements; n < lanes<T> is a masked access, and loads zeros beyond n.
template <typename S, typename T>
[[gnu::always_inline]] inline Simd<T> load(const StorageType<S>* from, int64_t n) {
  if (n == lanes<T>) [[likely]] {
    return SimdMemory<S, T>::load(from);
  }
#if PAL_FAST_VECTOR_BYTES == 64
  using Vector = typename SimdMemory<S, T>::Vector;
  if constexpr (sizeof(Vector) == 64) {
    const __mmask64 mask = (uint64_t{1} << (n * sizeof(StorageType<S>))) - 1;
    return SimdMemory<S, T>::widen(reinterpret_cast<Vector>(_mm512_maskz_loadu_epi8(mask, from)));
  } else if constexpr (sizeof(Vector) == 32) {
    const auto mask = static_cast<__mmask32>((uint64_t{1} << (n * sizeof(StorageType<S>))) - 1);
    return SimdMemory<S, T>::widen(reinterpret_cast<Vector>(_mm256_maskz_loadu_epi8(mask, from)));
  } else {
    const auto mask = static_cast<__mmask16>((uint64_t{1} << (n * sizeof(StorageType<S>))) - 1);
    return SimdMemory<S, T>::widen(reinterpret_cast<Vector>(_mm_maskz_loadu_epi8(mask, from)));
  }
#else
  StorageType<S> padded[lanes<T>] = {};
  for (int64_t i = 0; i < n; ++i) {
    padded[i] = from[i];
  }
  return SimdMemory<S, T>::load(padded);
#endif
}

template <typename S, typename T>
[[gnu::always_inline]] inline void store(StorageType<S>* to, Simd<T> value, int64_t n) {
  const auto packed = SimdMemory<S, T>::pack(value);
  if (n == lanes<T>) [[likely]] {
    __builtin_memcpy(to, &packed, sizeof(packed));
    return;
  }
#if PAL_FAST_VECTOR_BYTES == 64
  if constexpr (sizeof(packed) == 64) {
    const __mmask64 mask = (uint64_t{1} << (n * sizeof(StorageType<S>))) - 1;
    _mm512_mask_storeu_epi8(to, mask, reinterpret_cast<__m512i>(packed));
  } else if constexpr (sizeof(packed) == 32) {
    const auto mask = static_cast<__mmask32>((uint64_t{1} << (n * sizeof(StorageType<S>))) - 1);
    _mm256_mask_storeu_epi8(to, mask, reinterpret_cast<__m256i>(packed));
  } else {
    const auto mask = static_cast<__mmask16>((uint64_t{1} << (n * sizeof(StorageType<S>))) - 1);
    _mm_mask_storeu_epi8(to, mask, reinterpret_cast<__m128i>(packed));
  }
#else
  for (int64_t i = 0; i < n; ++i) {
    to[i] = packed[i];
  }
#endif
}

// Software prefetch for a loop over `from`: the hardware prefetcher stops at page boundaries.
template <typename Element>
[[gnu::always_inline]] inline void prefetch(const Element* from) {
  constexpr int64_t DISTANCE = 2048;  // bytes
  __builtin_prefetch(reinterpret_cast<const char*>(from) + DISTANCE);
}

// Non-temporal store of a whole vector, bypassing the cache, where the instruction set has it. `to` must be aligned to
// the vector. stream_fence() must follow before other threads read.
template <typename S, typename T>
[[gnu::always_inline]] inline void stream_store(StorageType<S>* to, Simd<T> value) {
  const auto packed = SimdMemory<S, T>::pack(value);
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

inline void stream_fence() {
#if PAL_FAST_VECTOR_BYTES >= 32
  _mm_sfence();
#endif
}

template <typename T>
[[gnu::always_inline]] inline Simd<T> lane_indices() {
  Simd<T> numbers;
  for (int64_t i = 0; i < lanes<T>; ++i) {
    numbers[i] = static_cast<T>(i);
  }
  return numbers;
}

// Lanes 0 .. n-1 of `value`, the others 0.
template <typename T>
[[gnu::always_inline]] inline Simd<T> keep_first(Simd<T> value, int64_t n) {
  if (n == lanes<T>) [[likely]] {
    return value;
  }
  return lane_indices<T>() < static_cast<T>(n) ? value : Simd<T>{};
}

template <typename T>
[[gnu::always_inline]] inline double horizontal_sum(Simd<T> value) {
  double sum = 0;
  for (int64_t i = 0; i < lanes<T>; ++i) {
    sum += static_cast<double>(value[i]);
  }
  return sum;
}

[[nodiscard]] constexpr int64_t at_least_one(int64_t n) { return n < 1 ? 1 : n; }
[[nodiscard]] constexpr int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }

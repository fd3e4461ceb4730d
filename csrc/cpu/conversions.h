// Storage types and their vectorised conversions to the compute type and back. To be included by the two instances.h
// only, inside their namespace: every instruction set has its own copy.

// A vector of `Count` elements of T.
template <typename T, int64_t Count>
struct PackedOf {
  typedef T type __attribute__((vector_size(Count * sizeof(T))));
};
template <typename T, int64_t Count>
using Packed = typename PackedOf<T, Count>::type;

// Tags of the 16-bit storage types, whose elements are accessed as uint16_t.
struct HalfFloat;
struct BrainFloat;

template <typename S>
struct StorageTypeOf {
  using type = S;
};
template <>
struct StorageTypeOf<HalfFloat> {
  using type = uint16_t;
};
template <>
struct StorageTypeOf<BrainFloat> {
  using type = uint16_t;
};
template <typename S>
using StorageType = typename StorageTypeOf<S>::type;

// The compute type of storage type S: double for double, float for all others.
template <typename S>
struct ComputeTypeOf {
  using type = float;
};
template <>
struct ComputeTypeOf<double> {
  using type = double;
};
template <typename S>
using ComputeType = typename ComputeTypeOf<S>::type;

// Widening conversions by intrinsics: for __builtin_convertvector alone compilers emit two instructions.
template <int64_t N>
[[gnu::always_inline]] inline Packed<uint32_t, N> widen_bits(Packed<uint16_t, N> words) {
#if PAL_FAST_VECTOR_BYTES == 64
  if constexpr (N == 16) {
    return reinterpret_cast<Packed<uint32_t, N>>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(words)));
  }
#endif
#if PAL_FAST_VECTOR_BYTES >= 32
  if constexpr (N == 8) {
    return reinterpret_cast<Packed<uint32_t, N>>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(words)));
  }
  if constexpr (N == 4) {
    const __m128i low = _mm_cvtsi64_si128(reinterpret_cast<int64_t>(words));
    return reinterpret_cast<Packed<uint32_t, N>>(_mm_cvtepu16_epi32(low));
  }
#endif
  return __builtin_convertvector(words, Packed<uint32_t, N>);
}

template <typename T, int64_t N, typename From>
[[gnu::always_inline]] inline Packed<T, N> to_compute_type(Packed<From, N> value) {
  if constexpr (sizeof(T) == sizeof(From)) {
    return value;
  }
#if PAL_FAST_VECTOR_BYTES == 64
  if constexpr (sizeof(T) > sizeof(From) && N == 8) {
    return reinterpret_cast<Packed<T, N>>(_mm512_cvtps_pd(reinterpret_cast<__m256>(value)));
  }
#endif
#if PAL_FAST_VECTOR_BYTES >= 32
  if constexpr (sizeof(T) > sizeof(From) && N == 4) {
    return reinterpret_cast<Packed<T, N>>(_mm256_cvtps_pd(reinterpret_cast<__m128>(value)));
  }
#endif
  return __builtin_convertvector(value, Packed<T, N>);
}

// Converts N elements of storage type S to float or double and back: to nearest even; overflow becomes infinity, NaN
// stays NaN.
template <typename S, int64_t N>
struct Conversion {
  using Element = S;
  using Values = Packed<S, N>;
  [[gnu::always_inline]] static Values widen(Values stored) { return stored; }
  [[gnu::always_inline]] static Values narrow(Values value) { return value; }
};

template <int64_t N>
struct Conversion<BrainFloat, N> {
  using Element = float;
  using Values = Packed<float, N>;
  using Bits = Packed<uint32_t, N>;
  using Words = Packed<uint16_t, N>;
  [[gnu::always_inline]] static Values widen(Words stored) {
    return reinterpret_cast<Values>(widen_bits<N>(stored) << 16);
  }
  [[gnu::always_inline]] static Words narrow(Values value) {
    const Bits bits = reinterpret_cast<Bits>(value);
    const Bits rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const Bits quiet = Bits{} + 0x7FC0u;
    const Bits chosen = value == value ? rounded : quiet;
    return __builtin_convertvector(chosen, Words);
  }
};

template <int64_t N>
struct Conversion<HalfFloat, N> {
  using Element = float;
  using Values = Packed<float, N>;
  using Bits = Packed<uint32_t, N>;
  using Words = Packed<uint16_t, N>;
  // Normal numbers by rebiasing the exponent, subnormal ones by a subtraction that normalises them.
  [[gnu::always_inline]] static Values widen(Words stored) {
#if PAL_FAST_VECTOR_BYTES == 64
    if constexpr (N == 16) {
      return reinterpret_cast<Values>(_mm512_cvtph_ps(reinterpret_cast<__m256i>(stored)));
    }
#endif
#if PAL_FAST_VECTOR_BYTES >= 32
    if constexpr (N == 8) {
      return reinterpret_cast<Values>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(stored)));
    }
#endif
    const Bits shifted = widen_bits<N>(stored) << 16;
    const Bits magnitude = shifted + shifted;  // shifts out the sign
    const Bits normal =
        reinterpret_cast<Bits>(reinterpret_cast<Values>((magnitude >> 4) + (0xE0u << 23)) * 0x1.0p-112f);
    const Bits subnormal = reinterpret_cast<Bits>(reinterpret_cast<Values>((magnitude >> 17) | (126u << 23)) - 0.5f);
    const Bits bits = magnitude < (1u << 27) ? subnormal : normal;
    return reinterpret_cast<Values>(bits | (shifted & 0x80000000u));
  }
  [[gnu::always_inline]] static Words narrow(Values value) {
#if PAL_FAST_VECTOR_BYTES == 64
    if constexpr (N == 16) {
      return reinterpret_cast<Words>(_mm512_cvtps_ph(reinterpret_cast<__m512>(value), _MM_FROUND_TO_NEAREST_INT));
    }
#endif
#if PAL_FAST_VECTOR_BYTES >= 32
    if constexpr (N == 8) {
      return reinterpret_cast<Words>(_mm256_cvtps_ph(reinterpret_cast<__m256>(value), _MM_FROUND_TO_NEAREST_INT));
    }
#endif
    const Bits bits = reinterpret_cast<Bits>(value);
    const Bits doubled = bits + bits;
    // Numbers too large for binary16 become infinity here; all others are scaled back exactly.
    const Values base = (reinterpret_cast<Values>(bits & 0x7FFFFFFFu) * 0x1.0p+112f) * 0x1.0p-110f;
    const Bits exponent = doubled & 0xFF000000u;
    const Bits least = Bits{} + 0x71000000u;
    // Adding this bias makes the float addition round the mantissa where binary16 ends.
    const Bits bias = ((exponent < least ? least : exponent) >> 1) + 0x07800000u;
    const Bits rounded = reinterpret_cast<Bits>(reinterpret_cast<Values>(bias) + base);
    const Bits finite = ((rounded >> 13) & 0x7C00u) + (rounded & 0x0FFFu);
    const Bits nan = Bits{} + 0x7E00u;
    const Bits chosen = doubled > 0xFF000000u ? nan : finite;
    return __builtin_convertvector(((bits >> 16) & 0x8000u) | chosen, Words);
  }
};

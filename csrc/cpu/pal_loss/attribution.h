// The attribution of a vector of elements, and its derivatives with respect to activation and gradient.
// To be included by instances.h only, inside its namespace.

template <typename T>
struct BitsOf {
  using type = uint32_t;
};
template <>
struct BitsOf<double> {
  using type = uint64_t;
};

template <typename T>
[[gnu::always_inline]] inline Simd<T> magnitude(Simd<T> value) {
  using Bits = Simd<typename BitsOf<T>::type>;
  return reinterpret_cast<Simd<T>>((reinterpret_cast<Bits>(value) << 1) >> 1);
}

// x * sign(g): 0 for g = 0, NaN for g = NaN.
template <typename T>
[[gnu::always_inline]] inline Simd<T> signed_by(Simd<T> g, Simd<T> x) {
  const Simd<T> zero{};
  return g > zero ? x : (g < zero ? -x : g);
}

// The attribution a(f, g) and, for d = dP/da, the gradients df and dg.
template <Attribution Kind, bool Absolute>
struct Attribute {
  static constexpr bool reads_activation = Kind != Attribution::grad;
  static constexpr bool reads_gradient = Kind != Attribution::activation;

  template <typename T>
  [[gnu::always_inline]] static Simd<T> of(Simd<T> f, Simd<T> g) {
    const Simd<T> strength = Absolute ? magnitude<T>(g) : g;
    return Kind == Attribution::grad_input ? f * strength : Kind == Attribution::grad ? strength : f;
  }
  template <typename T>
  [[gnu::always_inline]] static Simd<T> to_activation(Simd<T> d, Simd<T> g) {
    return Kind == Attribution::activation ? d : d * (Absolute ? magnitude<T>(g) : g);
  }
  template <typename T>
  [[gnu::always_inline]] static Simd<T> to_gradient(Simd<T> d, Simd<T> f, Simd<T> g) {
    const Simd<T> slope = Kind == Attribution::grad_input ? d * f : d;
    return Absolute ? signed_by<T>(g, slope) : slope;
  }
};

// The attribution of the n elements of a sample from i on, computed in T.
template <typename S, typename T, typename A>
[[gnu::always_inline]] inline Simd<T> attribution_at(const StorageType<S>* f, const StorageType<S>* g, int64_t i,
                                                     int64_t n) {
  Simd<T> activation{}, gradient{};
  if constexpr (A::reads_activation) {
    prefetch(f + i);
    activation = load<S, T>(f + i, n);
  }
  if constexpr (A::reads_gradient) {
    prefetch(g + i);
    gradient = load<S, T>(g + i, n);
  }
  return A::template of<T>(activation, gradient);
}

// Calls work.template operator()<S, A>() for the problem's attribution, and below for the storage type, too.
template <typename S, typename Work>
[[gnu::always_inline]] inline void dispatch_attribution(const LossProblem& problem, const Work& work) {
  switch (problem.attribution) {
    case Attribution::grad_input:
      return problem.absolute ? work.template operator()<S, Attribute<Attribution::grad_input, true>>()
                              : work.template operator()<S, Attribute<Attribution::grad_input, false>>();
    case Attribution::grad:
      return problem.absolute ? work.template operator()<S, Attribute<Attribution::grad, true>>()
                              : work.template operator()<S, Attribute<Attribution::grad, false>>();
    case Attribution::activation:
      return work.template operator()<S, Attribute<Attribution::activation, false>>();
  }
}

template <typename Work>
[[gnu::always_inline]] inline void dispatch_storage_and_attribution(const LossProblem& problem, Storage storage,
                                                                    const Work& work) {
  switch (storage) {
    case Storage::float16:
      return dispatch_attribution<HalfFloat>(problem, work);
    case Storage::bfloat16:
      return dispatch_attribution<BrainFloat>(problem, work);
    case Storage::float32:
      return dispatch_attribution<float>(problem, work);
    case Storage::float64:
      return dispatch_attribution<double>(problem, work);
  }
}

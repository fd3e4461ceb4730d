// Memory as kernels see it in the emulator: pointers that check the bounds and the alignment of every access. Included
// by emulator.h.
#pragma once

namespace pal_fast::cuda {

// A pointer that knows where its array begins and ends.
template <typename T>
class Pointer {
 public:
  Pointer() = default;
  Pointer(std::nullptr_t) {}  // NOLINT
  Pointer(T* at, T* begin, T* end) : at_(at), begin_(begin), end_(end) {}
  template <typename U, typename = std::enable_if_t<std::is_same_v<const U, T> && !std::is_same_v<U, T>>>
  Pointer(const Pointer<U>& other) : at_(other.at()), begin_(other.begin()), end_(other.end()) {}  // NOLINT

  explicit operator bool() const { return at_ != nullptr; }
  T& operator*() const { return (*this)[0]; }
  T& operator[](int64_t index) const {
    check(index, 1);
    return at_[index];
  }
  Pointer operator+(int64_t offset) const { return {at_ + offset, begin_, end_}; }
  T* checked(int64_t count, size_t alignment) const {
    check(0, count);
    if (reinterpret_cast<uintptr_t>(at_) % alignment != 0) {
      throw std::runtime_error("an access that is not aligned to " + std::to_string(alignment) + " bytes");
    }
    return at_;
  }
  T* at() const { return at_; }
  T* begin() const { return begin_; }
  T* end() const { return end_; }

 private:
  void check(int64_t index, int64_t count) const {
    const int64_t first = at_ - begin_ + index;
    if (at_ == nullptr || first < 0 || first + count > end_ - begin_) {
      throw std::runtime_error("an access out of bounds: element " + std::to_string(first) + ", " +
                               std::to_string(count) + " at once, of an array of " + std::to_string(end_ - begin_));
    }
    emulator::record_access(at_ + index);
  }

  T* at_ = nullptr;
  T* begin_ = nullptr;
  T* end_ = nullptr;
};

template <typename T, typename V>
Pointer<T> global_array(V* memory, int64_t count) {
  if (memory == nullptr) {
    return nullptr;
  }
  T* begin = static_cast<T*>(memory);
  emulator::check_lent(begin, begin + count);
  return {begin, begin, begin + count};
}

inline unsigned char* shared_memory() {
  const auto memory = reinterpret_cast<uintptr_t>(emulator::machine.shared.data());
  return reinterpret_cast<unsigned char*>((memory + 15) & ~uintptr_t{15});
}

template <typename T>
Pointer<T> shared_array(unsigned char* memory, int64_t offset, int64_t count) {
  auto* begin = reinterpret_cast<T*>(memory + offset);
  if (offset + count * static_cast<int64_t>(sizeof(T)) > static_cast<int64_t>(emulator::machine.shared.size()) - 16) {
    throw std::runtime_error("a block takes more shared memory than its launch has");
  }
  return {begin, begin, begin + count};
}

template <typename T>
bool is_vector_aligned(const Pointer<T>& memory) {
  return reinterpret_cast<uintptr_t>(memory.at()) % 16 == 0;
}
template <auto, typename Bits, typename S>  // however it is cached
Bits load_bits(const Pointer<S>& from) {
  Bits bits;
  std::memcpy(&bits, from.checked(sizeof(Bits) / sizeof(S), sizeof(Bits)), sizeof(Bits));
  return bits;
}
template <typename S>
uint4 load_16_bytes_shared(const Pointer<S>& from) {
  return load_bits<nullptr, uint4>(from);
}
template <typename S>
void store_16_bytes(const Pointer<S>& to, const uint4& bits) {
  std::memcpy(to.checked(16 / sizeof(S), 16), &bits, 16);
}
template <typename S>
void store_8_bytes(const Pointer<S>& to, const uint2& bits) {
  std::memcpy(to.checked(8 / sizeof(S), 8), &bits, 8);
}
template <typename S>
void store_16_bytes_shared(const Pointer<S>& to, const uint4& bits) {
  store_16_bytes(to, bits);
}
template <typename S>
void prefetch_l2(const Pointer<S>& from) {
  (void)from.checked(1, 1);
}

inline float exp2_approx(float exponent) {
  const float power = std::exp2(exponent);
  return power < std::numeric_limits<float>::min() ? 0.0f : power;
}

}  // namespace pal_fast::cuda

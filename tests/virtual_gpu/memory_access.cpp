// Loads, stores, copies, atomics and fences.
#include <cstring>

#include "types.h"

namespace virtual_gpu {
namespace {

[[nodiscard]] uint64_t address_of(const Thread& t, const Instruction& i) {
  const uint64_t base = i.space == Space::shared ? read<uint32_t>(t, i.address) : read<uint64_t>(t, i.address);
  return base + static_cast<uint64_t>(i.offset);
}

void* locate(const Thread& t, const Instruction& i, uint64_t bytes, bool writes, const void* value) {
  uint64_t address = address_of(t, i);
  const bool shared = i.space == Space::shared || (i.space == Space::generic && address >= SHARED_WINDOW);
  address -= i.space == Space::generic && shared ? SHARED_WINDOW : 0;
  machine().traffic.note(t, i, address, bytes, writes, shared);
  if (shared) {
    return t.block->shared->access(t, address, bytes, writes, value);
  }
  return machine().memory.access(t, address, bytes, writes, value, i);
}

// Memory fence: releases everything that the thread has seen and stored so far.
void fence(Thread& t, const Instruction&) {
  t.seen.merge(t.acquired);
  t.released.merge(t.seen);
  t.released.merge(t.block->seen);
  t.released.see(t.block->index, t.block->epoch, t.index);
}

// Orders ordinary accesses of shared memory before those of the asynchronous proxy, through which wgmma reads it.
void fence_proxy(Thread& t, const Instruction&) {
  t.proxy.fences += 1;
  t.proxy.fenced_below = t.block->epoch;
}

[[nodiscard]] Handler any_fence(const Parts& parts) {
  if (!has(parts, "proxy") && !has(parts, "mbarrier_init")) return fence;
  if (parts == Parts{"fence", "proxy", "async"} || parts == Parts{"fence", "proxy", "async", "shared"}) {
    return fence_proxy;
  }
  unknown(parts);
}

void load(Thread& t, const Instruction& i) {
  const int count = std::max<int>(1, i.wide);
  const unsigned char* from;
  if (i.space == Space::param) {
    const uint64_t offset = address_of(t, i);
    if (offset + i.bytes * count > t.block->parameters->size()) {
      fault(t, "a read past the parameters");
    }
    from = t.block->parameters->data() + offset;
  } else {
    from = static_cast<const unsigned char*>(locate(t, i, static_cast<uint64_t>(i.bytes) * count, false, nullptr));
  }
  for (int k = 0; k < count; ++k) {
    uint64_t bits = 0;
    std::memcpy(&bits, from + k * i.bytes, i.bytes);
    if (i.is_signed) {
      const int unused = 64 - 8 * i.bytes;
      bits = static_cast<uint64_t>(static_cast<int64_t>(bits << unused) >> unused);
    }
    t.slots[i.target[k]] = bits;
  }
  if (i.acquires) {
    fence(t, i);
  }
}

void store(Thread& t, const Instruction& i) {
  const int count = std::max<int>(1, i.pack);
  unsigned char values[64];
  for (int k = 0; k < count; ++k) {
    std::memcpy(values + k * i.bytes, &t.slots[i.source[k]], i.bytes);
  }
  if (i.releases) {
    fence(t, i);
  }
  const uint64_t bytes = static_cast<uint64_t>(i.bytes) * count;
  std::memcpy(locate(t, i, bytes, true, values), values, bytes);
}

[[nodiscard]] Handler memory_access(const Parts& parts, Instruction& instruction) {
  static const Parts KNOWN = {"ld", "st",       "global",  "shared",  "param",   "cta", "cg", "cs", "ca", "nc",
                              "wb", "volatile", "relaxed", "acquire", "release", "gpu", "v2", "v4", "v8"};
  for (size_t k = 0; k + 1 < parts.size(); ++k) {
    const bool hint = parts[k].rfind("L1::", 0) == 0 || parts[k].rfind("L2::", 0) == 0;
    if (!hint && std::find(KNOWN.begin(), KNOWN.end(), parts[k]) == KNOWN.end()) {
      unknown(parts);
    }
  }
  instruction.space = has(parts, "global")   ? Space::global
                      : has(parts, "shared") ? Space::shared
                      : has(parts, "param")  ? Space::param
                                             : Space::generic;
  instruction.bytes = static_cast<uint8_t>(std::stoi(parts.back().substr(1)) / 8);
  instruction.is_signed = parts.back()[0] == 's';
  instruction.read_only = has(parts, "nc");
  instruction.acquires = has(parts, "acquire");
  instruction.releases = has(parts, "release");
  return parts[0] == "ld" ? load : store;
}

// Asynchronous copies are executed as late as the memory model allows.
void copy_later(Thread& t, const Instruction& i) {
  const uint64_t bytes = read<uint32_t>(t, i.source[0]);
  const uint64_t given = i.sources > 1 ? read<uint32_t>(t, i.source[1]) : bytes;
  if (t.copies.empty()) {
    t.copies.emplace_back();
  }
  const Copy copy = {&i, read<uint32_t>(t, i.address) + static_cast<uint64_t>(i.offset),
                     read<uint64_t>(t, i.second_address) + static_cast<uint64_t>(i.second_offset), bytes, given};
  t.copies.back().push_back(copy);
  machine().traffic.note(t, i, copy.to, bytes, true, true);
  if (given > 0) {
    machine().traffic.note(t, i, copy.from, given, false, false);
  }
}
void close_group(Thread& t, const Instruction&) { t.copies.emplace_back(); }
void make_copies(Thread& t, size_t groups) {
  for (size_t g = 0; g < groups; ++g) {
    for (const Copy& copy : t.copies[g]) {
      unsigned char bytes[16] = {};
      if (copy.given > 0) {
        std::memcpy(bytes, machine().memory.access(t, copy.from, copy.given, false, nullptr, *copy.instruction),
                    copy.given);
      }
      std::memcpy(t.block->shared->access(t, copy.to, copy.bytes, true, bytes), bytes, copy.bytes);
    }
  }
  t.copies.erase(t.copies.begin(), t.copies.begin() + static_cast<std::ptrdiff_t>(groups));
}
void wait_for_group(Thread& t, const Instruction& i) {
  const size_t closed = t.copies.empty() ? 0 : t.copies.size() - 1, left = read<uint32_t>(t, i.source[0]);
  make_copies(t, closed > left ? closed - left : 0);
}
void wait_for_copies(Thread& t, const Instruction&) { make_copies(t, t.copies.size()); }

[[nodiscard]] Handler copy_operation(const Parts& parts) {
  if (has(parts, "bulk")) unknown(parts);
  if (has(parts, "async") && has(parts, "shared") && has(parts, "global")) return copy_later;
  if (has(parts, "commit_group")) return close_group;
  if (has(parts, "wait_group")) return wait_for_group;
  if (has(parts, "wait_all")) return wait_for_copies;
  unknown(parts);
}

template <typename T, typename Operation>
void atomic(Thread& t, const Instruction& i) {
  if (i.releases) {
    fence(t, i);
  }
  void* at = machine().memory.atomic(t, address_of(t, i), sizeof(T));
  T old;
  std::memcpy(&old, at, sizeof(T));
  const T changed = Operation()(old, read<T>(t, i.source[0]));
  std::memcpy(at, &changed, sizeof(T));
  if (i.targets > 0) {
    write<T>(t, i.target[0], old);
  }
  if (i.acquires) {
    fence(t, i);
  }
}
struct Increment {
  template <typename T>
  T operator()(T old, T most) const {
    return old >= most ? T{0} : static_cast<T>(old + 1);
  }
};
struct Exchange {
  template <typename T>
  T operator()(T, T value) const {
    return value;
  }
};

[[nodiscard]] Handler atomic_operation(const Parts& parts, Instruction& instruction) {
  instruction.acquires = has(parts, "acquire") || has(parts, "acq_rel");
  instruction.releases = has(parts, "release") || has(parts, "acq_rel");
  if (has(parts, "shared") || has(parts, "cta") || has(parts, "sys")) {
    unknown(parts);
  }
  return integral(parts, [&]<typename T>(T) -> Handler {
    if (has(parts, "inc")) return atomic<T, Increment>;
    if (has(parts, "add")) return atomic<T, Add>;
    if (has(parts, "exch")) return atomic<T, Exchange>;
    if (has(parts, "and")) return atomic<T, And>;
    if (has(parts, "or")) return atomic<T, Or>;
    unknown(parts);
  });
}

void to_generic(Thread& t, const Instruction& i) {
  write<uint64_t>(t, i.target[0], read<uint64_t>(t, i.source[0]) + SHARED_WINDOW);
}
void from_generic(Thread& t, const Instruction& i) {
  write<uint64_t>(t, i.target[0], read<uint64_t>(t, i.source[0]) - SHARED_WINDOW);
}

[[nodiscard]] Handler address_conversion(const Parts& parts) {
  if (has(parts, "global")) return move_of({"mov", "b64"});
  if (has(parts, "shared")) return has(parts, "to") ? from_generic : to_generic;
  unknown(parts);
}

void prefetch(Thread& t, const Instruction& i) {
  if (!machine().memory.holds(address_of(t, i), 1)) {
    fault(t, "a prefetch out of bounds");
  }
}

}  // namespace

Handler memory_operation_of(const Parts& parts, Instruction& instruction) {
  const std::string& name = parts[0];
  if (name == "ld" || name == "st") return memory_access(parts, instruction);
  if (name == "cp") return copy_operation(parts);
  if (name == "atom" || name == "red") return atomic_operation(parts, instruction);
  if (name == "fence" || name == "membar") return any_fence(parts);
  if (name == "cvta") return address_conversion(parts);
  if (name == "prefetch") {
    instruction.space = Space::global;
    return prefetch;
  }
  return nullptr;
}

}  // namespace virtual_gpu

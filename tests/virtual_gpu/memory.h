// The memory that kernels see: what the device has allocated and each block's shared memory, with every access checked.
//
// What is found: accesses out of bounds, to freed memory or not aligned; reads of shared memory that was never written;
// races in shared memory and in global memory, within a block (no barrier between) and between blocks (no fence,
// atomic, fence between); reads through the read-only cache of what the same launch has written.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "program.h"

namespace virtual_gpu {

// Where the generic address space shows a block's shared memory.
inline constexpr uint64_t SHARED_WINDOW = 0x7f00'0000'0000'0000ull;

// Which stores of other blocks are known to have happened: of a block, all before its barrier number `below`, and all
// of some of its threads.
struct Seen {
  uint32_t below = 0;
  std::set<int> threads;
};

class Clock {
 public:
  void merge(const Clock& other);
  void see(uint32_t block, uint32_t below, int thread);
  [[nodiscard]] bool covers(uint32_t block, uint32_t epoch, int thread) const;

 private:
  std::map<uint32_t, Seen> of_block_;
};

// For a thread: never accessed; by several of a block, or stores of the same value by several blocks.
inline constexpr int NONE = -1, SEVERAL = -2;

struct Access {
  uint32_t block = 0;
  int thread = NONE;
  uint32_t epoch = 0, warp_epoch = 0;
};

struct Allocation {
  uint64_t begin = 0, end = 0;
  std::vector<Access> stores;  // by GRANULE bytes, in this launch; empty: none
};

// Device memory. Not for two launches at once.
class Memory {
 public:
  static constexpr uint64_t GRANULE = 2;

  void allocate(const void* memory, int64_t bytes);
  void free(const void* memory);
  [[nodiscard]] bool holds(uint64_t address, uint64_t bytes) { return holder_of(address, bytes) != nullptr; }
  // Where the allocation that holds the address begins.
  [[nodiscard]] uint64_t beginning_of(uint64_t address) { return allocation_of(address, 1).begin; }
  // A launch follows what was launched before it.
  void begin_launch();
  // Also checks that it is one allocation's, aligned. Writing the `value` that is there already is no race.
  void* access(const Thread& thread, uint64_t address, uint64_t bytes, bool writes, const void* value,
               const Instruction& instruction);
  void* atomic(Thread& thread, uint64_t address, uint64_t bytes);

 private:
  // The allocation that holds all of it; null if none does.
  [[nodiscard]] Allocation* holder_of(uint64_t address, uint64_t bytes);
  [[nodiscard]] Allocation& allocation_of(uint64_t address, uint64_t bytes);

  std::map<uint64_t, Allocation> allocations_;  // by their ends
  Allocation* last_ = nullptr;
  std::map<uint64_t, Clock> released_;  // by the address of an atomic
  std::vector<Allocation*> written_;
};

// The number of barriers before which all threads of a warpgroup know stores to lie, as seen through the asynchronous
// proxy; `threads` begins at its first.
[[nodiscard]] uint32_t fenced_for_all(const Thread* threads);

// A block's shared memory. `warpgroups`: those that multiply.
class SharedMemory {
 public:
  SharedMemory(int64_t bytes, size_t warpgroups);
  void* access(const Thread& thread, uint64_t address, uint64_t bytes, bool writes, const void* value);
  // What the wgmma of the warpgroup of `thread` that was issued last reads. Besides a barrier it wants a
  // fence.proxy.async after each store: of the thread that stored, before the barrier; of any thread, between two
  // barriers; or of every thread of the warpgroup, of which `fenced_below` tells (fenced_for_all).
  const void* access_by_proxy(const Thread& thread, uint64_t address, uint64_t bytes, uint32_t fenced_below);

 private:
  void check_bounds(const Thread& thread, uint64_t address, uint64_t bytes) const;
  void check_products(const Thread& thread, uint64_t byte) const;
  [[nodiscard]] unsigned char* at(uint64_t address);

  std::vector<unsigned char> bytes_;
  std::vector<Access> stores_, loads_;
  std::vector<uint32_t> fences_;  // of its proxy, that the thread which stored a byte had executed before
  std::vector<std::vector<uint32_t>> products_;  // by warpgroup and byte: the last wgmma that read it
};

}  // namespace virtual_gpu

// Executes kernels: threads in a random order that changes anywhere, several blocks at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "memory.h"
#include "program.h"
#include "traffic.h"
#include "warpgroup.h"

namespace virtual_gpu {

inline constexpr int LANES = 32, WARPGROUP = 128;

enum class State : uint8_t { runs, at_barrier, at_warp, at_warpgroup, left };

struct Block;

// cp.async: `given` bytes of global memory, then zeros up to `bytes`.
struct Copy {
  const Instruction* instruction = nullptr;
  uint64_t to = 0, from = 0, bytes = 0, given = 0;
};

// A thread's fence.proxy.async: how many it has executed, how many of those before the last barrier, and the barriers
// that lay before the last of them.
struct ProxyFences {
  uint32_t fences = 0, before_barrier = 0, fenced_below = 0;
};

struct Thread {
  Block* block = nullptr;
  uint64_t* slots = nullptr;
  int index = 0;
  int counter = 0;  // of the next instruction
  State state = State::runs;
  uint32_t warp_epoch = 0;
  Clock seen, acquired, released;
  ProxyFences proxy;
  std::vector<std::vector<Copy>> copies;  // to shared memory, not yet waited for; the last group is still open
};

struct Block {
  uint32_t index = 0;
  uint32_t epoch = 0;  // barriers passed
  const Kernel* kernel = nullptr;
  const std::vector<unsigned char>* parameters = nullptr;
  std::unique_ptr<SharedMemory> shared;
  std::vector<uint64_t> slots;
  std::vector<Thread> threads;
  std::vector<int> running;
  int left = 0;
  Clock seen;
  uint32_t proxy_fenced_below = 0;    // what was stored before this barrier, a thread has fenced before the last one
  std::vector<Warpgroup> warpgroups;  // of a kernel that has wgmma
};

struct Launch {
  const Kernel* kernel = nullptr;
  uint32_t grid[3] = {1, 1, 1}, threads[3] = {1, 1, 1};
  int64_t dynamic_shared_bytes = 0;
  std::vector<unsigned char> parameters;
};

class Machine {
 public:
  void run(const Launch& launch);

  Memory memory;
  TrafficCounter traffic;
  std::minstd_rand random{1};

 private:
  [[nodiscard]] std::unique_ptr<Block> start(const Launch& launch, uint32_t index) const;
  void step(Block& block);
  void release_barrier(Block& block);
  void release_warp(Block& block, const Thread& thread);
  void release_warpgroup(Block& block, const Thread& thread);
};

[[nodiscard]] Machine& machine();

// What a warp's instruction does when all its lanes have arrived (warp.cpp).
[[nodiscard]] uint32_t lanes_of(const Thread& thread, const Instruction& instruction);
void exchange(Block& block, int warp, uint32_t lanes, const Instruction& instruction);

// The bits of a slot as a T.
template <typename T>
[[nodiscard]] inline T read(const Thread& thread, int slot) {
  if constexpr (std::is_same_v<T, bool>) {
    return thread.slots[slot] != 0;  // true is also written as -1
  } else {
    T value;
    __builtin_memcpy(&value, &thread.slots[slot], sizeof(T));
    return value;
  }
}
template <typename T>
inline void write(Thread& thread, int slot, T value) {
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  thread.slots[slot] = bits;
}

[[noreturn]] void fault(const Thread& thread, const std::string& what);

}  // namespace virtual_gpu

// What launches ask of memory, counted as a GPU does it: by the instructions of warps, in sectors of global memory and
// wavefronts of shared memory. The lanes' n-th executions of an instruction count as one of the warp.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

namespace virtual_gpu {

struct Thread;
struct Instruction;
class Memory;

inline constexpr uint64_t SECTOR_BYTES = 32, BANKS = 32, BANK_BYTES = 4;

// Of one allocation, or of all shared memory: `units` are the sectors or wavefronts that `requests` instructions of
// warps took, `least` what as many distinct bytes would take if they lay side by side.
struct Traffic {
  uint64_t requests = 0, bytes = 0, units = 0, least = 0;
};

class TrafficCounter {
 public:
  bool counting = false;

  // Nothing unless counting.
  void note(const Thread& thread, const Instruction& instruction, uint64_t address, uint64_t bytes, bool writes,
            bool shared) {
    if (counting) {
      count(thread, instruction, address, bytes, writes, shared);
    }
  }
  // A launch has ended.
  void finish(Memory& memory);
  // A line for each allocation and direction: where it begins (0: shared memory), "read" or "write", and its Traffic.
  // Forgets what it tells.
  [[nodiscard]] std::string report();

 private:
  void count(const Thread& thread, const Instruction& instruction, uint64_t address, uint64_t bytes, bool writes,
             bool shared);

  struct LaneAccess {
    int lane = 0;
    uint64_t address = 0, bytes = 0;
  };
  struct Request {
    bool writes = false, shared = false;
    std::vector<LaneAccess> lanes;
  };
  // Block, warp or thread, instruction, whether shared memory (copies access both), and how many times before (0 of a
  // thread's own number).
  using Key = std::tuple<uint32_t, int, const Instruction*, bool, uint32_t>;
  struct Hash {
    [[nodiscard]] size_t operator()(const Key& key) const;
  };

  std::unordered_map<Key, Request, Hash> requests_;
  std::unordered_map<Key, uint32_t, Hash> executions_;
  std::map<std::pair<uint64_t, bool>, Traffic> totals_;  // by the allocation's beginning, and whether written
};

}  // namespace virtual_gpu

#include "traffic.h"

#include <algorithm>
#include <array>
#include <set>

#include "machine.h"

namespace virtual_gpu {
namespace {

// Bytes that several lanes access count once.
[[nodiscard]] uint64_t distinct_bytes(const std::set<std::pair<uint64_t, uint64_t>>& ranges) {
  uint64_t bytes = 0, end = 0;
  for (const auto& [begin, size] : ranges) {
    bytes += begin + size - std::min(begin + size, std::max(begin, end));
    end = std::max(end, begin + size);
  }
  return bytes;
}

}  // namespace

size_t TrafficCounter::Hash::operator()(const Key& key) const {
  const auto& [block, number, instruction, shared, execution] = key;
  uint64_t bits = reinterpret_cast<uint64_t>(instruction) / alignof(Instruction);
  for (const uint64_t part : {uint64_t{block}, static_cast<uint64_t>(number), uint64_t{shared}, uint64_t{execution}}) {
    bits = (bits ^ part) * 0x9e3779b97f4a7c15ull;
    bits ^= bits >> 29;
  }
  return bits;
}

void TrafficCounter::count(const Thread& thread, const Instruction& instruction, uint64_t address, uint64_t bytes,
                           bool writes, bool shared) {
  const uint32_t block = thread.block->index;
  const uint32_t execution = executions_[{block, thread.index, &instruction, shared, 0}]++;
  Request& request = requests_[{block, thread.index / LANES, &instruction, shared, execution}];
  request.writes = writes;
  request.shared = shared;
  request.lanes.push_back({thread.index % LANES, address, bytes});
}

void TrafficCounter::finish(Memory& memory) {
  for (const auto& [key, request] : requests_) {
    std::set<std::pair<uint64_t, uint64_t>> ranges;
    uint64_t widest = 0;
    for (const LaneAccess& access : request.lanes) {
      ranges.insert({access.address, access.bytes});
      widest = std::max(widest, access.bytes);
    }
    const uint64_t begin = request.shared ? 0 : memory.beginning_of(request.lanes.front().address);
    Traffic& total = totals_[{begin, request.writes}];
    const uint64_t bytes = distinct_bytes(ranges);
    total.requests += 1;
    total.bytes += bytes;
    if (!request.shared) {
      std::set<uint64_t> sectors;
      for (const auto& [first, size] : ranges) {
        for (uint64_t sector = first / SECTOR_BYTES; sector <= (first + size - 1) / SECTOR_BYTES; ++sector) {
          sectors.insert(sector);
        }
      }
      total.units += sectors.size();
      total.least += (bytes + SECTOR_BYTES - 1) / SECTOR_BYTES;
      continue;
    }
    // Per 32 lanes, or 16 of 8 bytes, or 8 of 16 bytes: as many wavefronts as distinct words fall into one bank.
    const int at_once = static_cast<int>(BANKS * BANK_BYTES / std::max(widest, BANK_BYTES));
    for (int first = 0; first < LANES; first += at_once) {
      std::array<std::set<uint64_t>, BANKS> words;
      for (const LaneAccess& access : request.lanes) {
        if (access.lane >= first && access.lane < first + at_once) {
          for (uint64_t word = access.address / BANK_BYTES; word <= (access.address + access.bytes - 1) / BANK_BYTES;
               ++word) {
            words[word % BANKS].insert(word);
          }
        }
      }
      size_t most = 0;
      for (const std::set<uint64_t>& of_bank : words) {
        most = std::max(most, of_bank.size());
      }
      total.units += most;
      total.least += most > 0 ? 1 : 0;
    }
  }
  requests_.clear();
  executions_.clear();
}

std::string TrafficCounter::report() {
  std::string lines;
  for (const auto& [place, total] : totals_) {
    lines += std::to_string(place.first) + (place.second ? " write" : " read");
    for (const uint64_t value : {total.requests, total.bytes, total.units, total.least}) {
      lines += " " + std::to_string(value);
    }
    lines += "\n";
  }
  totals_.clear();
  requests_.clear();
  executions_.clear();
  return lines;
}

}  // namespace virtual_gpu

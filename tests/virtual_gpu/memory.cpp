#include "memory.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "machine.h"

namespace virtual_gpu {
namespace {

[[nodiscard]] std::string hexadecimal(uint64_t value) {
  char text[32];
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

// Whether an earlier access by the same block is ordered before what `thread` does now.
[[nodiscard]] bool ordered_in_block(const Access& before, const Thread& thread) {
  return before.thread == thread.index || before.epoch < thread.block->epoch ||
         (before.thread >= 0 && before.thread / LANES == thread.index / LANES && before.warp_epoch < thread.warp_epoch);
}

void check_alignment(const Thread& thread, uint64_t address, uint64_t bytes) {
  if (address % bytes != 0) {
    fault(thread, "an access of " + std::to_string(bytes) + " bytes that is not aligned: " + hexadecimal(address));
  }
}

}  // namespace

void Clock::merge(const Clock& other) {
  for (const auto& [block, seen] : other.of_block_) {
    Seen& mine = of_block_[block];
    mine.below = std::max(mine.below, seen.below);
    mine.threads.insert(seen.threads.begin(), seen.threads.end());
  }
}

void Clock::see(uint32_t block, uint32_t below, int thread) {
  Seen& mine = of_block_[block];
  mine.below = std::max(mine.below, below);
  mine.threads.insert(thread);
}

bool Clock::covers(uint32_t block, uint32_t epoch, int thread) const {
  const auto seen = of_block_.find(block);
  return seen != of_block_.end() && (epoch < seen->second.below || seen->second.threads.contains(thread));
}

void Memory::allocate(const void* memory, int64_t bytes) {
  const auto begin = reinterpret_cast<uint64_t>(memory);
  allocations_[begin + static_cast<uint64_t>(bytes)] = {begin, begin + static_cast<uint64_t>(bytes), {}};
  last_ = nullptr;
}

void Memory::free(const void* memory) {
  const auto begin = reinterpret_cast<uint64_t>(memory);
  const auto found = allocations_.upper_bound(begin);
  if (found != allocations_.end() && found->second.begin == begin) {
    written_.erase(std::remove(written_.begin(), written_.end(), &found->second), written_.end());
    allocations_.erase(found);
  }
  last_ = nullptr;
}

void Memory::begin_launch() {
  for (Allocation* allocation : written_) {
    allocation->stores.clear();
  }
  written_.clear();
  released_.clear();
}

Allocation* Memory::holder_of(uint64_t address, uint64_t bytes) {
  const auto holds = [&](const Allocation& one) { return address >= one.begin && address + bytes <= one.end; };
  if (last_ != nullptr && holds(*last_)) {
    return last_;
  }
  const auto found = allocations_.upper_bound(address);
  return found != allocations_.end() && holds(found->second) ? last_ = &found->second : nullptr;
}

Allocation& Memory::allocation_of(uint64_t address, uint64_t bytes) {
  if (Allocation* holder = holder_of(address, bytes)) {
    return *holder;
  }
  const auto next = allocations_.upper_bound(address);
  throw std::runtime_error("an access out of bounds: " + std::to_string(bytes) + " bytes at " + hexadecimal(address) +
                           (next == allocations_.end() ? std::string(", past all memory")
                                                       : ", beside memory from " + hexadecimal(next->second.begin) +
                                                             " to " + hexadecimal(next->second.end)));
}

void* Memory::access(const Thread& thread, uint64_t address, uint64_t bytes, bool writes, const void* value,
                     const Instruction& instruction) {
  Allocation& allocation = allocation_of(address, bytes);
  check_alignment(thread, address, bytes);
  if (writes && allocation.stores.empty()) {
    allocation.stores.resize((allocation.end - allocation.begin + GRANULE - 1) / GRANULE + 1);
    written_.push_back(&allocation);
  }
  const bool same_value =
      value != nullptr && std::memcmp(reinterpret_cast<const void*>(address), value, static_cast<size_t>(bytes)) == 0;
  if (!allocation.stores.empty()) {
    const uint64_t first = (address - allocation.begin) / GRANULE;
    const uint64_t last = (address + bytes - 1 - allocation.begin) / GRANULE;
    for (uint64_t granule = first; granule <= last; ++granule) {
      Access& store = allocation.stores[granule];
      if (store.thread >= 0) {
        if (instruction.read_only) {
          fault(thread, "a read through the read-only cache of what this launch has written");
        }
        const bool ordered = store.block == thread.block->index
                                 ? ordered_in_block(store, thread)
                                 : thread.seen.covers(store.block, store.epoch, store.thread) ||
                                       thread.block->seen.covers(store.block, store.epoch, store.thread);
        if (!ordered && !same_value) {
          fault(thread, std::string("a race: ") + (writes ? "a write" : "a read") + " at " + hexadecimal(address) +
                            " of what thread " + std::to_string(store.thread) + " of block " +
                            std::to_string(store.block) + " has written, with nothing that orders the two");
        }
      }
      if (writes && (!same_value || store.thread == NONE || store.block == thread.block->index)) {
        store = {thread.block->index, thread.index, thread.block->epoch, thread.warp_epoch};
      } else if (writes) {
        store.thread = SEVERAL;
      }
    }
  }
  return reinterpret_cast<void*>(address);
}

void* Memory::atomic(Thread& thread, uint64_t address, uint64_t bytes) {
  (void)allocation_of(address, bytes);
  check_alignment(thread, address, bytes);
  Clock& released = released_[address];
  thread.acquired.merge(released);
  released.merge(thread.released);
  return reinterpret_cast<void*>(address);
}

SharedMemory::SharedMemory(int64_t bytes, size_t warpgroups)
    : bytes_(static_cast<size_t>(bytes) + 64, 0xff),
      stores_(static_cast<size_t>(bytes)),
      loads_(stores_.size()),
      fences_(warpgroups > 0 ? stores_.size() : 0),
      products_(warpgroups, std::vector<uint32_t>(stores_.size())) {}

void SharedMemory::check_bounds(const Thread& thread, uint64_t address, uint64_t bytes) const {
  if (address + bytes > stores_.size()) {
    fault(thread, "an access out of bounds of shared memory: " + std::to_string(bytes) + " bytes at " +
                      std::to_string(address) + " of " + std::to_string(stores_.size()));
  }
  check_alignment(thread, address, bytes);
}

unsigned char* SharedMemory::at(uint64_t address) {
  return reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(bytes_.data()) + 63) & ~uintptr_t{63}) + address;
}

// Checks that no wgmma in flight reads what `thread` writes.
void SharedMemory::check_products(const Thread& thread, uint64_t byte) const {
  for (size_t g = 0; g < products_.size(); ++g) {
    const Warpgroup& group = thread.block->warpgroups[g];
    const bool own = static_cast<size_t>(thread.index / WARPGROUP) == g;
    if (products_[g][byte] > (own ? group.completed : group.known)) {
      fault(thread, "a race in shared memory: a write at " + std::to_string(byte) + " of what a wgmma of warpgroup " +
                        std::to_string(g) + " reads that was not waited for");
    }
  }
}

void* SharedMemory::access(const Thread& thread, uint64_t address, uint64_t bytes, bool writes, const void* value) {
  check_bounds(thread, address, bytes);
  unsigned char* const first = at(address);
  const bool same_value = value != nullptr && std::memcmp(first, value, bytes) == 0;
  const Access now{thread.block->index, thread.index, thread.block->epoch, thread.warp_epoch};
  for (uint64_t byte = address; byte < address + bytes; ++byte) {
    Access &store = stores_[byte], &load = loads_[byte];
    if (writes) {
      if (store.thread != NONE && !same_value && !ordered_in_block(store, thread)) {
        fault(thread, "a race in shared memory: a write at " + std::to_string(byte) + " over what thread " +
                          std::to_string(store.thread) + " has written, with no barrier between");
      }
      if (load.thread != NONE && !same_value && !ordered_in_block(load, thread)) {
        fault(thread, "a race in shared memory: a write at " + std::to_string(byte) + " of what thread " +
                          std::to_string(load.thread) + " (-2: several) has read, with no barrier between");
      }
      if (!products_.empty()) {
        if (!same_value) {
          check_products(thread, byte);
        }
        fences_[byte] = thread.proxy.fences;
      }
      store = now;
    } else {
      if (store.thread == NONE) {
        fault(thread, "a read of shared memory that was never written, at " + std::to_string(byte));
      }
      if (!ordered_in_block(store, thread)) {
        fault(thread, "a race in shared memory: a read at " + std::to_string(byte) + " of what thread " +
                          std::to_string(store.thread) + " has written, with no barrier between");
      }
      const bool fresh = load.thread == NONE || load.epoch < now.epoch || load.thread == now.thread;
      load = fresh ? now : Access{now.block, SEVERAL, now.epoch, now.warp_epoch};
    }
  }
  return first;
}

uint32_t fenced_for_all(const Thread* threads) {
  uint32_t fenced_below = threads[0].proxy.fenced_below;
  for (int t = 1; t < WARPGROUP; ++t) {
    fenced_below = std::min(fenced_below, threads[t].proxy.fenced_below);
  }
  return std::max(fenced_below, threads[0].block->proxy_fenced_below);
}

const void* SharedMemory::access_by_proxy(const Thread& thread, uint64_t address, uint64_t bytes,
                                          uint32_t fenced_below) {
  check_bounds(thread, address, bytes);
  const Block& block = *thread.block;
  const auto group = static_cast<size_t>(thread.index / WARPGROUP);
  for (uint64_t byte = address; byte < address + bytes; ++byte) {
    const Access& store = stores_[byte];
    if (store.thread == NONE) {
      fault(thread, "a read of shared memory that was never written, at " + std::to_string(byte));
    }
    const ProxyFences& writer = block.threads[static_cast<size_t>(store.thread)].proxy;
    const bool fenced = writer.before_barrier > fences_[byte] || fenced_below > store.epoch;
    if (store.epoch == block.epoch || !fenced) {
      fault(thread, "a race in shared memory: a wgmma reads at " + std::to_string(byte) + " what thread " +
                        std::to_string(store.thread) + " has written, with no " +
                        (fenced || store.epoch == block.epoch ? "barrier" : "fence.proxy.async") + " between");
    }
    products_[group][byte] = block.warpgroups[group].issued;
  }
  return at(address);
}

}  // namespace virtual_gpu

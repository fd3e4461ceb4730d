#include "machine.h"

#include <algorithm>
#include <stdexcept>

namespace virtual_gpu {
namespace {

constexpr int MOST_BLOCKS_AT_ONCE = 4;
constexpr int MOST_INSTRUCTIONS_IN_A_ROW = 200;

}  // namespace

Machine& machine() {
  static Machine one;
  return one;
}

void fault(const Thread& thread, const std::string& what) {
  throw std::runtime_error(what + " (thread " + std::to_string(thread.index) + " of block " +
                           std::to_string(thread.block->index) + ")");
}

std::unique_ptr<Block> Machine::start(const Launch& launch, uint32_t index) const {
  const Kernel& kernel = *launch.kernel;
  auto block = std::make_unique<Block>();
  block->index = index;
  block->kernel = &kernel;
  block->parameters = &launch.parameters;
  const int count = static_cast<int>(launch.threads[0] * launch.threads[1] * launch.threads[2]);
  if (kernel.has_warpgroups) {
    block->warpgroups.resize(static_cast<size_t>((count + WARPGROUP - 1) / WARPGROUP));
    for (Warpgroup& group : block->warpgroups) {
      group.registers.resize(static_cast<size_t>(kernel.registers));
    }
  }
  block->shared = std::make_unique<SharedMemory>(kernel.static_shared_bytes + launch.dynamic_shared_bytes,
                                                 block->warpgroups.size());
  block->slots.assign(static_cast<size_t>(count) * kernel.slots, 0xdeadbeefdeadbeefull);
  block->threads.resize(count);
  const uint32_t* grid = launch.grid;
  const uint32_t* threads = launch.threads;
  for (int t = 0; t < count; ++t) {
    Thread& thread = block->threads[t];
    thread.block = block.get();
    thread.index = t;
    thread.slots = block->slots.data() + static_cast<size_t>(t) * kernel.slots;
    std::copy(kernel.constants.begin(), kernel.constants.end(), thread.slots + kernel.registers);
    const auto u = static_cast<uint32_t>(t);
    const uint64_t special[] = {u % threads[0],
                                u / threads[0] % threads[1],
                                u / (threads[0] * threads[1]),
                                threads[0],
                                threads[1],
                                threads[2],
                                index % grid[0],
                                index / grid[0] % grid[1],
                                index / (grid[0] * grid[1]),
                                grid[0],
                                grid[1],
                                grid[2],
                                u % LANES,
                                u / LANES};
    std::copy(std::begin(special), std::end(special), thread.slots + kernel.special);
    block->running.push_back(t);
  }
  return block;
}

void Machine::run(const Launch& launch) {
  memory.begin_launch();
  std::vector<uint32_t> waiting(static_cast<size_t>(launch.grid[0]) * launch.grid[1] * launch.grid[2]);
  for (size_t b = 0; b < waiting.size(); ++b) {
    waiting[b] = static_cast<uint32_t>(b);
  }
  std::shuffle(waiting.begin(), waiting.end(), random);
  const size_t at_once = 1 + random() % MOST_BLOCKS_AT_ONCE;
  std::vector<std::unique_ptr<Block>> resident;
  while (!waiting.empty() || !resident.empty()) {
    while (resident.size() < at_once && !waiting.empty()) {
      resident.push_back(start(launch, waiting.back()));
      waiting.pop_back();
    }
    const size_t chosen = random() % resident.size();
    Block& block = *resident[chosen];
    step(block);
    if (block.left == static_cast<int>(block.threads.size())) {
      resident.erase(resident.begin() + static_cast<std::ptrdiff_t>(chosen));
    }
  }
  traffic.finish(memory);
}

// Executes a few instructions of one thread.
void Machine::step(Block& block) {
  if (block.running.empty()) {
    throw std::runtime_error(block.kernel->name + ": threads wait for each other at different barriers (block " +
                             std::to_string(block.index) + ")");
  }
  const size_t place = random() % block.running.size();
  Thread& thread = block.threads[block.running[place]];
  const std::vector<Instruction>& instructions = block.kernel->instructions;
  const int most = 1 + static_cast<int>(random() % MOST_INSTRUCTIONS_IN_A_ROW);
  int done = 0;
  const Instruction* instruction = nullptr;
  try {
    for (; done < most && thread.state == State::runs; ++done) {
      instruction = &instructions.at(thread.counter++);
      if (instruction->predicate >= 0 && (thread.slots[instruction->predicate] != 0) == instruction->negated) {
        continue;
      }
      if (instruction->touches_warpgroup) {
        touch_registers(thread, *instruction);
      }
      instruction->handler(thread, *instruction);
    }
  } catch (const std::exception& error) {
    throw std::runtime_error(block.kernel->name + ": " + error.what() + ", at instruction " +
                             std::to_string(thread.counter - 1) + ": " + (instruction ? instruction->text : ""));
  }
  if (thread.state == State::runs) {
    return;
  }
  block.running.erase(block.running.begin() + static_cast<std::ptrdiff_t>(place));
  block.left += thread.state == State::left ? 1 : 0;
  if (thread.state == State::at_warp) {
    release_warp(block, thread);
  } else if (thread.state == State::at_warpgroup) {
    release_warpgroup(block, thread);
  } else {
    release_barrier(block);
  }
}

// Threads that have left count as arrived, as they do on a GPU.
void Machine::release_barrier(Block& block) {
  int at = -1, arrived = 0;
  for (const Thread& thread : block.threads) {
    if (thread.state == State::left) {
      continue;
    }
    if (thread.state != State::at_barrier) {
      return;
    }
    if (at >= 0 && thread.counter != at) {
      throw std::runtime_error(block.kernel->name + ": threads of block " + std::to_string(block.index) +
                               " meet at different barriers: " + block.kernel->instructions[at - 1].text + ", and " +
                               block.kernel->instructions[thread.counter - 1].text);
    }
    at = thread.counter;
    arrived += 1;
  }
  if (arrived == 0) {
    return;
  }
  block.epoch += 1;
  for (Warpgroup& group : block.warpgroups) {
    group.known = group.completed;
  }
  for (Thread& thread : block.threads) {
    block.seen.merge(thread.seen);
    block.proxy_fenced_below = std::max(block.proxy_fenced_below, thread.proxy.fenced_below);
    thread.proxy.before_barrier = thread.proxy.fences;
    if (thread.state == State::at_barrier) {
      thread.state = State::runs;
      block.running.push_back(thread.index);
    }
  }
}

// Runs the warp operation if `thread` was the last of its lanes to arrive.
void Machine::release_warp(Block& block, const Thread& thread) {
  const int warp = thread.index / LANES, first = warp * LANES;
  const int count = std::min<int>(LANES, static_cast<int>(block.threads.size()) - first);
  const Instruction& instruction = block.kernel->instructions[thread.counter - 1];
  const uint32_t lanes = lanes_of(thread, instruction);
  for (int lane = 0; lane < LANES; ++lane) {
    if ((lanes >> lane & 1u) == 0) {
      continue;
    }
    if (lane >= count || block.threads[first + lane].state == State::left) {
      fault(thread, "waits for a lane that has left or is not there: " + instruction.text);
    }
    const Thread& there = block.threads[first + lane];
    if (there.state != State::at_warp || there.counter != thread.counter) {
      return;
    }
  }
  exchange(block, warp, lanes, instruction);
  for (int lane = 0; lane < count; ++lane) {
    if ((lanes >> lane & 1u) != 0) {
      block.threads[first + lane].state = State::runs;
      block.running.push_back(first + lane);
    }
  }
}

// Runs the warpgroup operation if `thread` was the last to arrive.
void Machine::release_warpgroup(Block& block, const Thread& thread) {
  const int number = thread.index / WARPGROUP, first = number * WARPGROUP;
  const Instruction& instruction = block.kernel->instructions[thread.counter - 1];
  for (int t = first; t < first + WARPGROUP; ++t) {
    if (t >= static_cast<int>(block.threads.size()) || block.threads[t].state == State::left) {
      fault(thread, "waits for a thread of its warpgroup that has left or is not there: " + instruction.text);
    }
    const Thread& there = block.threads[t];
    if (there.state == State::at_warpgroup && there.counter != thread.counter) {
      fault(thread, "threads of a warpgroup meet at different instructions: " + instruction.text + ", and " +
                        block.kernel->instructions[there.counter - 1].text);
    }
    if (there.state != State::at_warpgroup) {
      return;
    }
  }
  try {
    operate(block, number, instruction);
  } catch (const std::exception& error) {
    throw std::runtime_error(block.kernel->name + ": " + error.what() + ", at " + instruction.text);
  }
  for (int t = first; t < first + WARPGROUP; ++t) {
    block.threads[t].state = State::runs;
    block.running.push_back(t);
  }
}

}  // namespace virtual_gpu

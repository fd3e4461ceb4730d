// Runs CUDA kernels' own source on the CPU: a fibre for each thread of a block, blocks one after the other in a
// shuffled order, the threads of a block in another. Include it before the kernels. For tests only.
//
// What it finds: results that depend on the order of threads or blocks (a missing __syncthreads, a missing ticket);
// reads of shared memory that was never written (it holds NaN) and, through Pointer, accesses out of bounds or not
// aligned; barriers that not all threads reach; shuffles with absent lanes. What it cannot find: missing fences between
// blocks that run at the same time, for which there is tests/virtual_gpu, and everything about speed.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "fibres.h"

#define PAL_FAST_EMULATED 1

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __align__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __shared__ static  // one block at a time; only dynamic shared memory is checked
#define __align__(bytes) alignas(bytes)
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace emulator {

struct Index {
  unsigned x = 1, y = 1, z = 1;
};

inline constexpr int LANES = 32;

// One block at a time.
struct Machine {
  std::mt19937 random{0};
  std::vector<Fibre> fibres;
  std::vector<int> order;                             // in which the threads are resumed
  std::vector<long> barriers, exchanges;              // how many each thread has reached
  std::vector<uint64_t> exchanged[2];                 // what a thread last gave to a shuffle; two, taken in turn
  std::vector<std::array<unsigned, 6>> fragments[2];  // and to a product of matrices
  std::vector<unsigned char> shared;
  bool progress = false;
  int current = 0;
  int threads = 0;
};
inline Machine machine;

inline void seed(unsigned value) { machine.random.seed(value); }

// Waits until the threads [first, last) have all arrived here.
inline void wait_for(std::vector<long>& reached, int first, int last, bool all_present) {
  const long mine = ++reached[machine.current];
  machine.progress = true;
  for (;;) {
    bool arrived = true;
    for (int thread = first; thread < last; ++thread) {
      if (reached[thread] < mine) {
        if (machine.fibres[thread].finished()) {
          if (all_present) {
            throw std::runtime_error("a shuffle with a lane that has left the kernel");
          }
        } else {
          arrived = false;
          break;
        }
      }
    }
    if (arrived) {
      machine.progress = true;
      return;
    }
    Fibre::yield();
  }
}

template <typename T>
T exchange(T value, int source_lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  const int thread = machine.current, warp = thread / LANES * LANES;
  // A lane can be one shuffle ahead of another one that still reads, never two.
  auto& slots = machine.exchanged[machine.exchanges[thread] % 2];
  std::memcpy(&slots[thread], &value, sizeof(T));
  wait_for(machine.exchanges, warp, warp + LANES, true);
  T other;
  std::memcpy(&other, &slots[warp + source_lane], sizeof(T));
  return other;
}

}  // namespace emulator

using std::max;
using std::min;

inline emulator::Index threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { emulator::wait_for(emulator::machine.barriers, 0, emulator::machine.threads, false); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulator::exchange(0, 0); }
inline void fence_acq_rel_gpu() {}

template <typename T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
  return emulator::exchange(value, (emulator::machine.current % emulator::LANES) ^ lanes);
}
template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
  return emulator::exchange(value, lane);
}

// Threads are switched at barriers and shuffles only, so this is atomic.
inline unsigned atomicInc(unsigned* address, unsigned most) {
  const unsigned old = *address;
  *address = old >= most ? 0 : old + 1;
  return old;
}

namespace emulator {

// Memory that kernels may touch: what the caller has lent, and the block's shared memory.
struct Lent {
  const unsigned char* begin;
  const unsigned char* end;
};
inline std::vector<Lent> lent;

inline void lend(const void* memory, int64_t bytes) {
  const auto* begin = static_cast<const unsigned char*>(memory);
  lent.push_back({begin, begin + bytes});
}

inline void check_lent(const void* begin, const void* end) {
  for (const Lent& memory : lent) {
    if (begin >= memory.begin && end <= memory.end) {
      return;
    }
  }
  throw std::runtime_error("a kernel's argument claims memory that was not lent to it");
}

// The accesses to one array, which a test watches: of each kernel, in the order in which they happened.
struct Access {
  unsigned block;
  int thread;
  int64_t offset;  // in bytes
};
struct Watch {
  const unsigned char* begin = nullptr;
  const unsigned char* end = nullptr;
  std::vector<std::vector<Access>> kernels;
};
inline Watch watch;

inline void record_access(const void* at) {
  const auto* byte = static_cast<const unsigned char*>(at);
  if (byte >= watch.begin && byte < watch.end) {
    watch.kernels.back().push_back({blockIdx.x, machine.current, byte - watch.begin});
  }
}

// kernel<<<grid, threads, shared>>>(...), the call of the kernel given as a function. The number of threads: a multiple
// of 32.
inline void launch(Index grid, Index threads, int64_t shared, const std::function<void()>& kernel) {
  Machine& m = machine;
  m.threads = static_cast<int>(threads.x * threads.y * threads.z);
  if (m.threads % LANES != 0 || m.threads > 1024 || grid.x == 0) {
    throw std::runtime_error("a launch of " + std::to_string(m.threads) + " threads, " + std::to_string(grid.x) +
                             " blocks");
  }
  if (shared > 48 * 1024) {
    throw std::runtime_error("more shared memory than a kernel has without asking: " + std::to_string(shared));
  }
  gridDim = grid;
  blockDim = threads;
  if (watch.begin != nullptr) {
    watch.kernels.emplace_back();
  }
  if (static_cast<int>(m.fibres.size()) < m.threads) {
    m.fibres = std::vector<Fibre>(m.threads);
  }
  m.order.resize(m.threads);
  for (int thread = 0; thread < m.threads; ++thread) {
    m.order[thread] = thread;
  }
  std::vector<unsigned> blocks(static_cast<size_t>(grid.x) * grid.y * grid.z);
  for (size_t b = 0; b < blocks.size(); ++b) {
    blocks[b] = static_cast<unsigned>(b);
  }
  std::shuffle(blocks.begin(), blocks.end(), m.random);

  for (const unsigned b : blocks) {
    m.shared.assign(static_cast<size_t>(shared) + 16, 0xff);  // NaN in every type
    m.barriers.assign(m.threads, 0);
    m.exchanges.assign(m.threads, 0);
    m.exchanged[0].assign(m.threads, 0);
    m.exchanged[1].assign(m.threads, 0);
    m.fragments[0].assign(m.threads, {});
    m.fragments[1].assign(m.threads, {});
    std::shuffle(m.order.begin(), m.order.end(), m.random);
    for (int thread = 0; thread < m.threads; ++thread) {
      m.fibres[thread].start(&kernel);
    }
    for (int running = m.threads; running > 0;) {
      m.progress = false;
      for (const int thread : m.order) {
        Fibre& fibre = m.fibres[thread];
        if (fibre.finished()) {
          continue;
        }
        m.current = thread;
        const auto t = static_cast<unsigned>(thread);
        threadIdx = {t % threads.x, t / threads.x % threads.y, t / (threads.x * threads.y)};
        blockIdx = {b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)};
        fibre.resume();
        if (fibre.finished()) {
          m.progress = true;
          running -= 1;
          if (fibre.failure()) {
            std::rethrow_exception(fibre.failure());
          }
        }
      }
      if (!m.progress && running > 0) {
        throw std::runtime_error("threads wait for each other at different barriers");
      }
    }
  }
}

}  // namespace emulator

#include "pointer.h"

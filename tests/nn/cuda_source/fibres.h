// Runs CUDA kernels' own source on the CPU: one fibre per thread of a block, blocks one after another. Barriers and
// shuffles hand over to the next fibre until all threads concerned have arrived. For tests only.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <ucontext.h>

#include <functional>
#include <vector>

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __shared__ static  // one block at a time
#define __forceinline__ inline
#define __launch_bounds__(threads)

namespace fibres {

struct Index {
  unsigned x = 1, y = 1, z = 1;
};

struct Block {
  ucontext_t scheduler;
  std::vector<ucontext_t> fibre;
  std::vector<std::vector<char>> stack;
  std::vector<char> finished;
  std::vector<long> barriers, shuffles;  // how many each thread has reached
  std::vector<double> exchanged;
  int current = 0;
  std::function<void()> kernel;
};
inline Block block;

inline void yield() { swapcontext(&block.fibre[block.current], &block.scheduler); }

inline void wait_for(std::vector<long>& reached, int first, int last) {
  const long mine = ++reached[block.current];
  for (;;) {
    bool all = true;
    for (int thread = first; thread < last; ++thread) {
      all = all && (block.finished[thread] || reached[thread] >= mine);
    }
    if (all) {
      return;
    }
    yield();
  }
}

inline void entry(int thread) {
  block.kernel();
  block.finished[thread] = 1;
  yield();
}

}  // namespace fibres

inline fibres::Index threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { fibres::wait_for(fibres::block.barriers, 0, static_cast<int>(fibres::block.fibre.size())); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
  auto& block = fibres::block;
  const int warp = block.current / 32 * 32;
  block.exchanged[block.current] = static_cast<double>(value);
  fibres::wait_for(block.shuffles, warp, warp + 32);
  const T other = static_cast<T>(block.exchanged[block.current ^ lanes]);
  fibres::wait_for(block.shuffles, warp, warp + 32);
  return other;
}

namespace fibres {

// kernel<<<grid, threads>>>(...), the call of the kernel given as a function. The number of threads: a multiple of 32.
inline void launch(Index grid, Index threads, const std::function<void()>& kernel) {
  const int count = static_cast<int>(threads.x * threads.y);
  block.kernel = kernel;
  block.stack.assign(count, std::vector<char>(1 << 16));
  gridDim = grid;
  blockDim = threads;
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      block.fibre.assign(count, {});
      block.finished.assign(count, 0);
      block.barriers.assign(count, 0);
      block.shuffles.assign(count, 0);
      block.exchanged.assign(count, 0);
      for (int thread = 0; thread < count; ++thread) {
        ucontext_t& fibre = block.fibre[thread];
        getcontext(&fibre);
        fibre.uc_stack = {.ss_sp = block.stack[thread].data(), .ss_flags = 0, .ss_size = block.stack[thread].size()};
        makecontext(&fibre, reinterpret_cast<void (*)()>(entry), 1, thread);
      }
      for (int running = count; running > 0;) {
        running = 0;
        for (int thread = 0; thread < count; ++thread) {
          if (!block.finished[thread]) {
            block.current = thread;
            blockIdx = {x, y, 0};
            threadIdx = {thread % threads.x, thread / threads.x, 0};
            swapcontext(&block.scheduler, &block.fibre[thread]);
            running += !block.finished[thread];
          }
        }
      }
    }
  }
}

}  // namespace fibres

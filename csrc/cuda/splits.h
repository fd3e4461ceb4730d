// The split heuristic: over how many blocks each tile of a launch is split.
#pragma once

#include <algorithm>
#include <cstdint>

namespace pal_fast::cuda {

[[nodiscard]] constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
[[nodiscard]] constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// How much of a launch is resident at once.
struct Occupancy {
  int64_t multiprocessors = 1;
  int64_t threads = 1;  // resident on each multiprocessor, in whole blocks

  [[nodiscard]] int64_t resident_blocks(int64_t block_threads) const {
    return multiprocessors * std::max<int64_t>(1, threads / block_threads);
  }
};

// The time of a block, in steps of its main loop.
struct CostModel {
  int64_t overhead = 0;  // prologue and epilogue
  int64_t unroll = 1;    // steps of an iteration; a block of a single step does not unroll
};

// The number of splits of each of `tiles` tiles of `steps` steps that minimises waves * time of a block, for blocks of
// `block_threads` threads.
[[nodiscard]] inline int64_t choose_splits(int64_t tiles, int64_t steps, int64_t block_threads, const CostModel& cost,
                                           const Occupancy& occupancy, int64_t max_splits = 64) {
  const int64_t resident = occupancy.resident_blocks(block_threads);
  int64_t best = 1, best_time = 0;
  for (int64_t splits = 1; splits <= std::min(steps, max_splits); ++splits) {
    const int64_t blocks = tiles * splits;
    int64_t block_steps = ceil_div(steps, splits);
    block_steps = (block_steps > 1 ? round_up(block_steps, cost.unroll) : block_steps) + cost.overhead;
    const int64_t waves = ceil_div(blocks, resident), time = waves * block_steps;
    if (splits == 1 || time < best_time) {
      best = splits;
      best_time = time;
    }
    if (blocks >= 8 * resident) {
      break;
    }
  }
  return best;
}

}  // namespace pal_fast::cuda

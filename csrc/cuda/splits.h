// Into how many blocks a launch's work is cut.
#pragma once

#include <algorithm>
#include <cstdint>

namespace pal_fast::cuda {

inline constexpr int64_t WARP_THREADS = 32;

[[nodiscard]] constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
[[nodiscard]] constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// What a device holds at once: of each multiprocessor, that many threads in whole blocks.
struct Room {
  int64_t processors = 1;
  int64_t threads = 1;

  [[nodiscard]] int64_t blocks_of(int64_t block) const { return processors * std::max<int64_t>(1, threads / block); }
};

// How blocks advance, for best_splits.
struct Pace {
  int64_t overhead = 0;  // steps that a block's beginning and end are worth
  int64_t at_once = 1;   // steps that a block of more than one takes together
};

// Into how many parts to cut each of `pieces` pieces of `steps` steps: the number that finishes first if all resident
// blocks, of `threads` threads, advance alike.
[[nodiscard]] inline int64_t best_splits(int64_t pieces, int64_t steps, int64_t threads, const Pace& pace,
                                         const Room& room, int64_t most = 64) {
  const int64_t resident = room.blocks_of(threads);
  int64_t best = 1, best_time = 0;
  for (int64_t splits = 1; splits <= std::min(steps, most); ++splits) {
    const int64_t blocks = pieces * splits;
    int64_t of_block = ceil_div(steps, splits);
    of_block = (of_block > 1 ? round_up(of_block, pace.at_once) : of_block) + pace.overhead;
    const int64_t time = ceil_div(blocks, resident) * of_block;
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

// Warp-wide operations, executed once all participating lanes have arrived.
#include <cstring>

#include "fragments.h"
#include "machine.h"

namespace virtual_gpu {
namespace {

// A warp and its participating lanes.
struct Warp {
  Block& block;
  int first;
  uint32_t lanes;

  [[nodiscard]] Thread& operator[](int lane) const { return block.threads[static_cast<size_t>(first + lane)]; }
  [[nodiscard]] bool has(int lane) const { return (lanes >> lane & 1u) != 0; }
};

template <typename Each>
void for_each(const Warp& warp, const Each& each) {
  for (int lane = 0; lane < LANES; ++lane) {
    if (warp.has(lane)) {
      each(lane, warp[lane]);
    }
  }
}

void shuffle(const Warp& warp, const Instruction& i) {
  uint32_t given[LANES] = {};
  for_each(warp, [&](int lane, const Thread& thread) { given[lane] = read<uint32_t>(thread, i.source[0]); });
  for_each(warp, [&](int lane, Thread& thread) {
    const int b = static_cast<int>(read<uint32_t>(thread, i.source[1]) & 31u);
    const auto c = static_cast<int>(read<uint32_t>(thread, i.source[2]));
    const int segment = c >> 8 & 31, clamp = c & 31;
    const int most = (lane & segment) | (clamp & ~segment), least = lane & segment;
    const int from = i.shuffle == Shuffle::butterfly ? lane ^ b
                     : i.shuffle == Shuffle::index   ? least | (b & ~segment)
                     : i.shuffle == Shuffle::up      ? lane - b
                                                     : lane + b;
    const bool inside = i.shuffle == Shuffle::up ? from >= most : from <= most;
    const int source = inside ? from : lane;
    if (!warp.has(source)) {
      fault(thread, "a shuffle from a lane that takes no part");
    }
    write<uint32_t>(thread, i.target[0], given[source]);
    if (i.targets == 2) {
      write<bool>(thread, i.target[1], inside);
    }
  });
}

void vote(const Warp& warp, const Instruction& i) {
  uint32_t ballot = 0;
  for_each(warp, [&](int lane, const Thread& thread) {
    ballot |= static_cast<uint32_t>(read<bool>(thread, i.source[0])) << lane;
  });
  for_each(warp, [&](int, Thread& thread) {
    if (i.vote == Vote::ballot) {
      write<uint32_t>(thread, i.target[0], ballot);
    } else {
      write<bool>(thread, i.target[0], i.vote == Vote::any ? ballot != 0 : ballot == warp.lanes);
    }
  });
}

// Reduces the lanes' values one after the other, through the registers of a scratch thread.
void reduce(const Warp& warp, const Instruction& i) {
  uint64_t values[LANES] = {}, result = 0;
  bool any = false;
  for_each(warp, [&](int lane, const Thread& thread) { values[lane] = thread.slots[i.source[0]]; });
  uint64_t pair[3] = {};
  Thread scratch;
  scratch.slots = pair;
  Instruction of_two;
  of_two.target[0] = 2, of_two.source[0] = 0, of_two.source[1] = 1;
  for_each(warp, [&](int lane, const Thread&) {
    if (any) {
      pair[0] = result, pair[1] = values[lane];
      i.reduction(scratch, of_two);
      result = pair[2];
    } else {
      result = values[lane];
      any = true;
    }
  });
  for_each(warp, [&](int, Thread& thread) { thread.slots[i.target[0]] = result; });
}

constexpr int ROWS = 8, ROW_BYTES = 16;

// Matrices of 8 rows of 8 elements of 16 bits. Row r of matrix m lies where lane 8 m + r says; a lane's register m
// holds elements 2 (lane % 4) and the next of row lane / 4, or of that column.
template <typename Move>
void for_each_pair(const Warp& warp, const Instruction& i, int count, const Move& move) {
  for (int m = 0; m < count; ++m) {
    for (int row = 0; machine().traffic.counting && row < ROWS; ++row) {
      const Thread& thread = warp[m * ROWS + row];
      const uint64_t address = read<uint32_t>(thread, i.address) + static_cast<uint64_t>(i.offset);
      machine().traffic.note(thread, i, address, ROW_BYTES, i.warp == WarpOperation::store_matrices, true);
    }
    for (int lane = 0; lane < LANES; ++lane) {
      for (int half = 0; half < 2; ++half) {
        const int outer = lane / 4, inner = 2 * (lane % 4) + half;
        const int row = i.transposed ? inner : outer, column = i.transposed ? outer : inner;
        const Thread& addresses = warp[m * ROWS + row];
        const uint64_t address = read<uint32_t>(addresses, i.address) + static_cast<uint64_t>(i.offset);
        if (address % ROW_BYTES != 0) {
          fault(addresses, "a row of a matrix that is not aligned to 16 bytes");
        }
        move(m, warp[lane], half, address + 2 * static_cast<uint64_t>(column));
      }
    }
  }
}

void load_matrices(const Warp& warp, const Instruction& i) {
  uint32_t loaded[LANES][4] = {};
  for_each_pair(warp, i, i.targets, [&](int m, Thread& thread, int half, uint64_t address) {
    uint16_t value;
    std::memcpy(&value, warp.block.shared->access(thread, address, sizeof(value), false, nullptr), sizeof(value));
    loaded[thread.index - warp.first][m] |= static_cast<uint32_t>(value) << (16 * half);
  });
  for_each(warp, [&](int lane, Thread& thread) {
    for (int m = 0; m < i.targets; ++m) {
      write<uint32_t>(thread, i.target[m], loaded[lane][m]);
    }
  });
}

void store_matrices(const Warp& warp, const Instruction& i) {
  for_each_pair(warp, i, i.sources, [&](int m, Thread& thread, int half, uint64_t address) {
    const auto value = static_cast<uint16_t>(read<uint32_t>(thread, i.source[m]) >> (16 * half));
    std::memcpy(warp.block.shared->access(thread, address, sizeof(value), true, &value), &value, sizeof(value));
  });
}

// A B + C in float32; A is row-major, B column-major.
void multiply(const Warp& warp, const Instruction& i) {
  const int of_a = i.depth * bytes_of(i.factors) / 8, of_b = of_a / 2;  // registers
  const Thread* lanes = &warp[0];
  float product[LANES][4];
  for (int lane = 0; lane < LANES; ++lane) {
    for (int e = 0; e < 4; ++e) {
      double sum = read<float>(lanes[lane], i.source[of_a + of_b + e]);
      for (int k = 0; k < i.depth; ++k) {
        sum += element_of(lanes, i.factors, i.source, true, row_of(lane, e), k) *
               element_of(lanes, i.factors, i.source + of_a, false, column_of(lane, e), k);
      }
      product[lane][e] = static_cast<float>(sum);
    }
  }
  for (int lane = 0; lane < LANES; ++lane) {
    for (int e = 0; e < 4; ++e) {
      write<float>(warp[lane], i.target[e], product[lane][e]);
    }
  }
}

}  // namespace

uint32_t lanes_of(const Thread& thread, const Instruction& i) {
  const bool whole = i.warp == WarpOperation::load_matrices || i.warp == WarpOperation::store_matrices ||
                     i.warp == WarpOperation::multiply;
  return whole ? 0xffffffffu : read<uint32_t>(thread, i.source[i.sources - 1]);
}

void exchange(Block& block, int number, uint32_t lanes, const Instruction& i) {
  const Warp warp{block, number * LANES, lanes};
  switch (i.warp) {
    case WarpOperation::meet:
      for_each(warp, [](int, Thread& thread) { thread.warp_epoch += 1; });
      return;
    case WarpOperation::shuffle:
      return shuffle(warp, i);
    case WarpOperation::vote:
      return vote(warp, i);
    case WarpOperation::reduce:
      return reduce(warp, i);
    case WarpOperation::load_matrices:
      return load_matrices(warp, i);
    case WarpOperation::store_matrices:
      return store_matrices(warp, i);
    case WarpOperation::multiply:
      return multiply(warp, i);
    case WarpOperation::none:
      return;
  }
}

}  // namespace virtual_gpu

// Matrices as a warp's registers hold them, and the numbers in them.
#pragma once

#include <cstring>

#include "half.h"
#include "machine.h"
#include "program.h"

namespace virtual_gpu {

[[nodiscard]] inline int bytes_of(Factors factors) { return factors == Factors::tf32 ? 4 : 2; }

// The number that a tensor core makes of its bits.
[[nodiscard]] inline double factor_of(Factors factors, uint32_t bits) {
  if (factors == Factors::tf32) {
    const uint32_t kept = bits & ~0x1fffu;  // it reads 19 bits
    float value;
    std::memcpy(&value, &kept, sizeof(value));
    return value;
  }
  const auto half = static_cast<uint16_t>(bits);
  return factors == Factors::bfloat16 ? from_bfloat(half) : from_half(half);
}

// An element of A [16, depth] or B [depth, 8], where the PTX ISA has the fragments of mma.m16n8, whose A is also
// wgmma's: `line` is the row of A or the column of B, `lanes` the warp's first thread, `slots` the fragment's
// registers.
[[nodiscard]] inline double element_of(const Thread* lanes, Factors factors, const int16_t* slots, bool of_a, int line,
                                       int k) {
  const int in_register = 4 / bytes_of(factors);
  const int lane = line % 8 * 4 + k % (4 * in_register) / in_register, step = k / (4 * in_register);
  const auto bits = read<uint32_t>(lanes[lane], slots[of_a ? (line >= 8 ? 1 : 0) + 2 * step : step]);
  return factor_of(factors, bits >> (k % in_register * 16));
}

// Where element e of four of a lane's accumulators lies in C [16, 8].
[[nodiscard]] inline int row_of(int lane, int e) { return lane / 4 + (e >= 2 ? 8 : 0); }
[[nodiscard]] inline int column_of(int lane, int e) { return lane % 4 * 2 + e % 2; }

}  // namespace virtual_gpu

// Where a matrix that wgmma reads lies in shared memory, in the descriptor and the canonical layouts of the PTX ISA.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "machine.h"

namespace virtual_gpu {

// Of A [64, depth] or B [depth, columns]. `line` is the row of A or the column of B. The matrix is made of atoms of 8
// lines of one to eight chunks of 16 bytes ("K-major": along k), or of 8 k of chunks along the lines ("MN-major").
class MatrixDescriptor {
 public:
  static constexpr uint64_t CHUNK = 16;

  // Faults where `thread` gives bits that mean nothing, or a swizzled matrix that does not begin where its pattern
  // does.
  MatrixDescriptor(const Thread& thread, uint64_t bits, int lines, int depth, int element_bytes, bool along_k)
      : begin_(field(bits, 0)),
        leading_(field(bits, 16)),
        stride_(field(bits, 32)),
        first_line_(bits >> 49 & 7u),
        element_bytes_(static_cast<uint64_t>(element_bytes)),
        along_k_(along_k) {
    constexpr uint64_t RESERVED = 0x3ff1'c000'c000'c000ull;
    if ((bits & RESERVED) != 0) {
      fault(thread, "a matrix descriptor with bits that mean nothing");
    }
    const uint64_t mode = bits >> 62;
    width_ = mode == 0 ? CHUNK : 256 >> mode;
    if (width_ == CHUNK) {
      return;
    }
    pattern_lines_ = width_ / CHUNK - 1;
    // It may begin anywhere in an atom's first line, and not leave it.
    const uint64_t read = std::min(static_cast<uint64_t>(along_k ? depth : lines) * element_bytes_, width_);
    if (((begin_ / LINE - first_line_) & pattern_lines_) != 0 || begin_ % LINE + read > width_) {
      fault(thread, "a matrix descriptor that does not begin where its swizzle's pattern does: at " +
                        std::to_string(begin_) + ", with base offset " + std::to_string(first_line_) +
                        " and a swizzle of " + std::to_string(width_) + " bytes");
    }
  }

  [[nodiscard]] uint64_t address(int line, int k) const {
    const auto outer = static_cast<uint64_t>(along_k_ ? line : k);
    const auto inner = static_cast<uint64_t>(along_k_ ? k : line) * element_bytes_;
    const uint64_t atom = inner / width_, in_atom = inner % width_;
    const bool swizzled = width_ != CHUNK;
    // Without a swizzle the two strides change places in MN-major layouts.
    const uint64_t to_next_atom = along_k_ || swizzled ? leading_ : stride_;
    const uint64_t to_next_lines = along_k_ || swizzled ? stride_ : leading_;
    const uint64_t address = begin_ + outer % 8 * width_ + outer / 8 * to_next_lines + atom * to_next_atom + in_atom;
    return address ^ ((address / LINE - first_line_) & pattern_lines_) * CHUNK;
  }

 private:
  static constexpr uint64_t LINE = 128;  // bytes, of the swizzles' patterns

  [[nodiscard]] static uint64_t field(uint64_t bits, int first) { return (bits >> first & 0x3fffu) * CHUNK; }

  uint64_t begin_, leading_, stride_, first_line_, element_bytes_;
  bool along_k_;
  uint64_t width_ = CHUNK;      // bytes of an atom's line
  uint64_t pattern_lines_ = 0;  // lines of 128 bytes after which a swizzle's pattern repeats, less one
};

}  // namespace virtual_gpu

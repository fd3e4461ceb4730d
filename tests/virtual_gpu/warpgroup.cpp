#include "warpgroup.h"

#include <cstring>

#include "fragments.h"
#include "machine.h"
#include "matrix_descriptor.h"

namespace virtual_gpu {
namespace {

constexpr int ROWS = 64, ROWS_OF_WARP = 16;

// The operands of wgmma.mma_async, as positions among an instruction's sources.
struct Operands {
  explicit Operands(const Instruction& i) : a_in_registers(i.pack > 0), b(a_in_registers ? i.pack : 1) {
    const int given = i.sources - (b + 4);
    transpose_a = !a_in_registers && given > 0 ? b + 4 : -1;
    transpose_b = given > 0 ? i.sources - 1 : -1;
  }
  bool a_in_registers;
  int b, transpose_a, transpose_b;
  [[nodiscard]] int adds() const { return b + 1; }
  [[nodiscard]] int sign_of_a() const { return b + 2; }
  [[nodiscard]] int sign_of_b() const { return b + 3; }
};

// A value that must be the same in all threads.
template <typename T>
[[nodiscard]] T uniform(const Thread* threads, int slot, const char* name) {
  const T value = read<T>(threads[0], slot);
  for (int t = 1; t < WARPGROUP; ++t) {
    if (read<T>(threads[t], slot) != value) {
      fault(threads[t], std::string("the threads of a warpgroup do not agree on ") + name);
    }
  }
  return value;
}

[[nodiscard]] double sign(const Thread& thread, int slot) {
  const auto value = read<int32_t>(thread, slot);
  if (value != 1 && value != -1) {
    fault(thread, "a factor of a matrix that is neither 1 nor -1");
  }
  return value;
}

// A [lines, depth], or B by its columns, from the block's shared memory.
[[nodiscard]] std::vector<double> matrix_in_memory(const Thread* threads, const Instruction& i, int descriptor,
                                                   int lines, int transposed) {
  const bool along_k = transposed < 0 || read<int32_t>(threads[0], i.source[transposed]) == 0;
  const int bytes = bytes_of(i.factors);
  const auto bits = uniform<uint64_t>(threads, i.source[descriptor], "a matrix descriptor");
  const MatrixDescriptor matrix(threads[0], bits, lines, i.depth, bytes, along_k);
  const uint32_t fenced_below = fenced_for_all(threads);
  std::vector<double> values;
  values.reserve(static_cast<size_t>(lines * i.depth));
  for (int line = 0; line < lines; ++line) {
    for (int k = 0; k < i.depth; ++k) {
      uint32_t element = 0;
      std::memcpy(&element,
                  threads[0].block->shared->access_by_proxy(threads[0], matrix.address(line, k), bytes, fenced_below),
                  static_cast<size_t>(bytes));
      values.push_back(factor_of(i.factors, element));
    }
  }
  return values;
}

[[nodiscard]] std::vector<double> matrix_in_registers(const Thread* threads, const Instruction& i) {
  std::vector<double> values;
  for (int row = 0; row < ROWS; ++row) {
    const Thread* lanes = threads + row / ROWS_OF_WARP * LANES;
    for (int k = 0; k < i.depth; ++k) {
      values.push_back(element_of(lanes, i.factors, i.source, true, row % ROWS_OF_WARP, k));
    }
  }
  return values;
}

void take_registers(Warpgroup& group, const Thread& thread, const Instruction& i) {
  const auto take = [&](int slot, bool accumulates) {
    RegisterUse& use = group.registers[static_cast<size_t>(slot)];
    const Instruction* before = use.accumulated_by;
    const bool of_other_shape = before != nullptr && (before->columns != i.columns || before->depth != i.depth);
    if (use.accessed || (accumulates && of_other_shape)) {
      fault(thread, "a wgmma of a register that was accessed otherwise, with no wgmma.fence between");
    }
    if (use.product > group.completed && accumulates != use.accumulates) {
      fault(thread, "a wgmma that accumulates in what another one in flight multiplies, or the other way round");
    }
    use = {group.issued, accumulates, accumulates ? &i : nullptr, false};
  };
  for (const int16_t slot : i.accumulators) {
    take(slot, true);
  }
  for (int k = 0; k < i.pack; ++k) {
    take(i.source[k], false);
  }
}

void multiply(Block& block, int number, const Instruction& i) {
  Warpgroup& group = block.warpgroups[static_cast<size_t>(number)];
  Thread* threads = &block.threads[static_cast<size_t>(number * WARPGROUP)];
  if (static_cast<int>(i.accumulators.size()) != i.columns / 2) {
    fault(threads[0], "a wgmma with as many accumulators as are not its own: " + i.text);
  }
  group.issued += 1;
  take_registers(group, threads[0], i);
  const Operands operands(i);
  const bool adds = uniform<bool>(threads, i.source[operands.adds()], "whether a wgmma adds");
  const double factor =
      sign(threads[0], i.source[operands.sign_of_a()]) * sign(threads[0], i.source[operands.sign_of_b()]);
  const std::vector<double> a = operands.a_in_registers ? matrix_in_registers(threads, i)
                                                        : matrix_in_memory(threads, i, 0, ROWS, operands.transpose_a);
  const std::vector<double> b = matrix_in_memory(threads, i, operands.b, i.columns, operands.transpose_b);
  for (int t = 0; t < WARPGROUP; ++t) {
    for (size_t r = 0; r < i.accumulators.size(); ++r) {
      const int e = static_cast<int>(r) % 4, lane = t % LANES;
      const int row = t / LANES * ROWS_OF_WARP + row_of(lane, e);
      const int column = static_cast<int>(r) / 4 * 8 + column_of(lane, e);
      double sum = adds ? read<float>(threads[t], i.accumulators[r]) : 0;
      for (int k = 0; k < i.depth; ++k) {
        sum += factor * a[static_cast<size_t>(row * i.depth + k)] * b[static_cast<size_t>(column * i.depth + k)];
      }
      write<float>(threads[t], i.accumulators[r], static_cast<float>(sum));
    }
  }
}

void wait(Warpgroup& group, size_t left) {
  const auto done = static_cast<std::ptrdiff_t>(group.committed.size() - std::min(left, group.committed.size()));
  if (done > 0) {
    group.completed = group.committed[static_cast<size_t>(done) - 1];
    group.committed.erase(group.committed.begin(), group.committed.begin() + done);
  }
}

}  // namespace

void operate(Block& block, int number, const Instruction& i) {
  Warpgroup& group = block.warpgroups[static_cast<size_t>(number)];
  switch (i.warpgroup) {
    case WarpgroupOperation::fence:
      for (RegisterUse& use : group.registers) {
        use.accessed = false;
        use.accumulated_by = nullptr;
      }
      return;
    case WarpgroupOperation::multiply:
      return multiply(block, number, i);
    case WarpgroupOperation::commit:
      group.committed.push_back(group.issued);
      return;
    case WarpgroupOperation::wait:
      return wait(group, read<uint32_t>(block.threads[static_cast<size_t>(number * WARPGROUP)], i.source[0]));
    case WarpgroupOperation::none:
      return;
  }
}

void touch_registers(const Thread& thread, const Instruction& i) {
  Warpgroup& group = thread.block->warpgroups[static_cast<size_t>(thread.index / WARPGROUP)];
  const auto touch = [&](int slot) {
    if (slot < 0 || slot >= thread.block->kernel->registers) {
      return;
    }
    RegisterUse& use = group.registers[static_cast<size_t>(slot)];
    if (use.product > group.completed) {
      fault(thread, "an access of a register of a wgmma that was not waited for");
    }
    use.accessed = true;
  };
  for (int k = 0; k < i.targets; ++k) {
    touch(i.target[k]);
  }
  for (int k = 0; k < i.sources; ++k) {
    touch(i.source[k]);
  }
  touch(i.predicate);
  touch(i.address);
  touch(i.second_address);
}

}  // namespace virtual_gpu

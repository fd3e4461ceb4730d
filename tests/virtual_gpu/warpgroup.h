// What the 128 threads of a warpgroup do together: products of matrices that they do not wait for (wgmma).
//
// A product is made when all threads have arrived, so that nothing can change what it reads; until it is waited for,
// its registers may not be accessed, nor what it reads of shared memory be written.
#pragma once

#include <cstdint>
#include <vector>

#include "program.h"

namespace virtual_gpu {

struct Thread;
struct Block;

// Of one register in all threads of a warpgroup.
struct RegisterUse {
  uint32_t product = 0;  // the last that accesses it; 0: none
  bool accumulates = false;
  const Instruction* accumulated_by = nullptr;  // null if a wgmma.fence followed
  bool accessed = true;                         // by anything but a wgmma, after the last wgmma.fence
};

struct Warpgroup {
  uint32_t issued = 0;              // products; they are numbered from 1
  std::vector<uint32_t> committed;  // the last product of each group that was not waited for
  uint32_t completed = 0;           // the last product that this warpgroup has waited for
  uint32_t known = 0;               // the last that the block knows of, from a barrier
  std::vector<RegisterUse> registers;
};

// When all threads of a warpgroup have arrived at `instruction`.
void operate(Block& block, int warpgroup, const Instruction& instruction);

// To be called before a thread executes an instruction that `touches_warpgroup`. Faults if a product in flight has the
// same register.
void touch_registers(const Thread& thread, const Instruction& instruction);

}  // namespace virtual_gpu

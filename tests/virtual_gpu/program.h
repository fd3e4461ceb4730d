// Kernels as PTX text has them, made ready to be executed one instruction at a time.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace virtual_gpu {

struct Thread;
struct Instruction;
using Handler = void (*)(Thread&, const Instruction&);

enum class Space : uint8_t { generic, global, shared, param };

// What the lanes of a warp do together.
enum class WarpOperation : uint8_t { none, meet, shuffle, vote, reduce, load_matrices, store_matrices, multiply };
// What the threads of a warpgroup do together: wgmma.
enum class WarpgroupOperation : uint8_t { none, fence, multiply, commit, wait };
enum class Shuffle : uint8_t { butterfly, index, up, down };
enum class Vote : uint8_t { ballot, any, all };
enum class Factors : uint8_t { float16, bfloat16, tf32 };

// Registers, special registers and constants are all slots of a thread, of 8 bytes each: an operand is a slot's number.
struct Instruction {
  static constexpr int MOST_VALUES = 12;

  Handler handler = nullptr;
  int predicate = -1;  // the slot that says whether it runs; -1: always
  bool negated = false;
  Space space = Space::generic;
  uint8_t bytes = 0;  // of an element in memory
  bool is_signed = false;
  bool read_only = false;  // ld.nc
  bool acquires = false, releases = false;
  uint8_t targets = 0, sources = 0;
  int16_t target[MOST_VALUES] = {};
  int16_t source[MOST_VALUES] = {};
  int16_t address = -1;  // the slot of an address, to which `offset` is added
  int64_t offset = 0;
  int16_t second_address = -1;  // of a copy: where from
  int64_t second_offset = 0;
  int jump = -1;
  uint8_t wide = 0, pack = 0;  // registers in braces: targets, sources
  WarpOperation warp = WarpOperation::none;
  Shuffle shuffle = Shuffle::butterfly;
  Vote vote = Vote::ballot;
  Factors factors = Factors::float16;
  bool transposed = false;
  int columns = 0, depth = 0;   // of a product of matrices
  Handler reduction = nullptr;  // of two values
  WarpgroupOperation warpgroup = WarpgroupOperation::none;
  std::vector<int16_t> accumulators;  // of wgmma
  bool touches_warpgroup = false;     // accesses a register that a wgmma of the kernel accesses, too
  std::string text;
};

struct Parameter {
  int64_t offset = 0, bytes = 0;
};

struct Kernel {
  std::string name;
  std::vector<Instruction> instructions;
  std::vector<Parameter> parameters;
  int64_t parameter_bytes = 0;
  int64_t static_shared_bytes = 0;  // dynamic shared memory begins here
  int registers = 0;                // slots 0 .. registers - 1 are written to
  std::vector<uint64_t> constants;  // the slots after them
  int special = 0;                  // the first of the slots of special registers, after the constants
  int slots = 0;
  bool has_warpgroups = false;  // that multiply
};

// Special registers that a thread is given.
inline const std::vector<std::string> SPECIAL_REGISTERS = {
    "%tid.x",   "%tid.y",   "%tid.z",    "%ntid.x",   "%ntid.y",   "%ntid.z", "%ctaid.x",
    "%ctaid.y", "%ctaid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z", "%laneid", "%warpid"};

// All entries of a text, which may be several modules and what cuobjdump says between them.
[[nodiscard]] std::map<std::string, Kernel> parse(const std::string& text);

// What executes an instruction; `parts` is its name, taken apart at the dots. Sets what of `instruction` the name says.
[[nodiscard]] Handler handler_of(const std::vector<std::string>& parts, Instruction& instruction);

}  // namespace virtual_gpu

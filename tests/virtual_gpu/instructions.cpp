// Dispatches an instruction to its handler; jumps, barriers and warp operations are handled here.
#include "types.h"

namespace virtual_gpu {
namespace {

void jump(Thread& t, const Instruction& i) { t.counter = i.jump; }
void leave(Thread& t, const Instruction&) { t.state = State::left; }
void wait_at_barrier(Thread& t, const Instruction& i) {
  if (i.sources != 1 || read<uint32_t>(t, i.source[0]) != 0) {
    fault(t, "a barrier of some of a block's threads: " + i.text);
  }
  t.state = State::at_barrier;
}
void wait_for_warp(Thread& t, const Instruction&) { t.state = State::at_warp; }
// A warp-wide operation, executed when its lanes have arrived.
[[nodiscard]] Handler together(WarpOperation operation, Instruction& instruction) {
  instruction.warp = operation;
  return wait_for_warp;
}
[[nodiscard]] Handler warp_reduction(const Parts& parts, Instruction& instruction) {
  instruction.reduction = integral(parts, [&]<typename T>(T) -> Handler {
    if (has(parts, "add")) return binary<T, Add>;
    if (has(parts, "min")) return binary<T, Least>;
    if (has(parts, "max")) return binary<T, Most>;
    if (has(parts, "and")) return binary<T, And>;
    if (has(parts, "or")) return binary<T, Or>;
    unknown(parts);
  });
  return together(WarpOperation::reduce, instruction);
}
[[nodiscard]] Handler matrix_move(const Parts& parts, Instruction& instruction) {
  if (!has(parts, "m8n8") || !has(parts, "b16")) unknown(parts);
  instruction.transposed = has(parts, "trans");
  return together(parts[0] == "ldmatrix" ? WarpOperation::load_matrices : WarpOperation::store_matrices, instruction);
}
[[nodiscard]] Handler matrix_product(const Parts& parts, Instruction& instruction) {
  if (!has(parts, "m16n8k8") && !has(parts, "m16n8k16")) unknown(parts);
  instruction.depth = has(parts, "m16n8k8") ? 8 : 16;
  instruction.factors = has(parts, "tf32") ? Factors::tf32 : has(parts, "bf16") ? Factors::bfloat16 : Factors::float16;
  return together(WarpOperation::multiply, instruction);
}
void wait_for_warpgroup(Thread& t, const Instruction&) { t.state = State::at_warpgroup; }
// wgmma; of the products, only those of 16-bit and TF32 matrices with float32 accumulators.
[[nodiscard]] Handler warpgroup_operation(const Parts& parts, Instruction& instruction) {
  const std::string& what = parts.at(1);
  if (what == "mma_async") {
    const std::string& shape = parts.at(4);  // m64n..k..
    const auto n = shape.find('n'), k = shape.find('k');
    if (parts.size() != 8 || shape.rfind("m64n", 0) != 0 || k == std::string::npos || parts[5] != "f32") unknown(parts);
    instruction.factors = parts[6] == "tf32"   ? Factors::tf32
                          : parts[6] == "bf16" ? Factors::bfloat16
                                               : Factors::float16;
    instruction.columns = std::stoi(shape.substr(n + 1));
    instruction.depth = std::stoi(shape.substr(k + 1));
    const bool is_half = parts[6] == "f16" || parts[6] == "bf16";
    if (parts[7] != parts[6] || (!is_half && parts[6] != "tf32")) unknown(parts);
    if (instruction.depth != (is_half ? 16 : 8) || instruction.columns % 8 != 0 || instruction.columns > 256) {
      unknown(parts);
    }
    instruction.warpgroup = WarpgroupOperation::multiply;
  } else if (what == "fence") {
    instruction.warpgroup = WarpgroupOperation::fence;
  } else if (what == "commit_group") {
    instruction.warpgroup = WarpgroupOperation::commit;
  } else if (what == "wait_group") {
    instruction.warpgroup = WarpgroupOperation::wait;
  } else {
    unknown(parts);
  }
  return wait_for_warpgroup;
}
void trap(Thread& t, const Instruction&) { fault(t, "a trap"); }
void active_lanes(Thread&, const Instruction&) { throw std::runtime_error("activemask means nothing here"); }

}  // namespace

Handler handler_of(const Parts& given, Instruction& instruction) {
  Parts parts = given;
  std::replace(parts.begin(), parts.end(), std::string("shared::cta"), std::string("shared"));
  const std::string& name = parts[0];
  if (const Handler arithmetic = arithmetic_of(parts)) return arithmetic;
  if (const Handler memory = memory_operation_of(parts, instruction)) return memory;
  if (name == "setp") return comparison_of(parts);
  if (name == "selp") return selection_of(parts);
  if (name == "mov") return move_of(parts);
  if (name == "cvt") return conversion_of(parts);
  if (name == "bra") return jump;
  if (name == "ret" || name == "exit") return leave;
  if (name == "bar" || name == "barrier") {
    return has(parts, "warp") ? together(WarpOperation::meet, instruction) : wait_at_barrier;
  }
  if (name == "shfl") {
    instruction.shuffle = has(parts, "bfly")  ? Shuffle::butterfly
                          : has(parts, "idx") ? Shuffle::index
                          : has(parts, "up")  ? Shuffle::up
                                              : Shuffle::down;
    return together(WarpOperation::shuffle, instruction);
  }
  if (name == "vote") {
    instruction.vote = has(parts, "ballot") ? Vote::ballot : has(parts, "any") ? Vote::any : Vote::all;
    return together(WarpOperation::vote, instruction);
  }
  if (name == "redux") return warp_reduction(parts, instruction);
  if (name == "ldmatrix" || name == "stmatrix") return matrix_move(parts, instruction);
  if (name == "wgmma") return warpgroup_operation(parts, instruction);
  if (name == "mma") return matrix_product(parts, instruction);
  if (name == "trap") return trap;
  if (name == "activemask") return active_lanes;
  unknown(parts);
}

}  // namespace virtual_gpu

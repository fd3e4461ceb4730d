// Detects the instruction set of this processor.
#include "cpu/instruction_set.h"

#include <cstdlib>
#include <string_view>

namespace pal_fast::cpu {
namespace {

[[nodiscard]] InstructionSet widest() {
#if defined(__x86_64__) && defined(__GNUC__)
  const char* variable = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view wanted = variable ? variable : "";
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (wanted == "default" || !avx2) {
    return InstructionSet::baseline;
  }
  return avx512 && wanted != "avx2" ? InstructionSet::avx512 : InstructionSet::avx2;
#else
  return InstructionSet::baseline;
#endif
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet chosen = widest();
  return chosen;
}

}  // namespace pal_fast::cpu

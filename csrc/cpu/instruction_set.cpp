// Detects the instruction set of this processor.
#include "cpu/instruction_set.h"

#include <cstdlib>
#include <string_view>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#endif

namespace pal_fast::cpu {
namespace {

#if defined(__x86_64__) && defined(__GNUC__)
// Instead of __builtin_cpu_supports, which does not know "f16c" in clang 14.
[[nodiscard]] bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

[[nodiscard]] InstructionSet widest() {
#if defined(__x86_64__) && defined(__GNUC__)
  const char* variable = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view wanted = variable ? variable : "";
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
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

// Run-time dispatch: the kernels are compiled once per instruction set.
#pragma once

namespace pal_fast::cpu {

enum class InstructionSet { baseline, avx2, avx512 };

// The widest instruction set that this processor supports, limited by ATEN_CPU_CAPABILITY (default, avx2, avx512) as
// PyTorch's own kernels are. Determined once per process.
[[nodiscard]] InstructionSet instruction_set();

}  // namespace pal_fast::cpu

// Defines `function`, which returns this processor's instance of `object`; the namespaces baseline, avx2 and avx512
// hold one each.
#if defined(__x86_64__) && defined(__GNUC__)
#define PAL_FAST_DISPATCH_INSTRUCTION_SET(Type, function, object) \
  [[nodiscard]] const Type& function() {                          \
    switch (::pal_fast::cpu::instruction_set()) {                 \
      case ::pal_fast::cpu::InstructionSet::avx512:               \
        return avx512::object;                                    \
      case ::pal_fast::cpu::InstructionSet::avx2:                 \
        return avx2::object;                                      \
      case ::pal_fast::cpu::InstructionSet::baseline:             \
        break;                                                    \
    }                                                             \
    return baseline::object;                                      \
  }
#else
#define PAL_FAST_DISPATCH_INSTRUCTION_SET(Type, function, object) \
  [[nodiscard]] const Type& function() { return baseline::object; }
#endif

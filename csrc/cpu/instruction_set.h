// The kernels are compiled once per instruction set; this is how one is chosen at run time.
#pragma once

namespace pal_fast::cpu {

enum class InstructionSet { baseline, avx2, avx512 };

// The widest that this processor runs. ATEN_CPU_CAPABILITY (default, avx2, avx512) holds it back, as it does
// PyTorch's own kernels. Chosen once per process.
[[nodiscard]] InstructionSet instruction_set();

}  // namespace pal_fast::cpu

// Defines `function`, which returns the instance of `object` for this processor. Each of the namespaces baseline,
// avx2 and avx512 holds one.
#if defined(__x86_64__) && defined(__GNUC__)
#define PAL_FAST_CHOOSE_INSTANCE(Type, function, object) \
  [[nodiscard]] const Type& function() {                 \
    switch (::pal_fast::cpu::instruction_set()) {        \
      case ::pal_fast::cpu::InstructionSet::avx512:      \
        return avx512::object;                           \
      case ::pal_fast::cpu::InstructionSet::avx2:        \
        return avx2::object;                             \
      case ::pal_fast::cpu::InstructionSet::baseline:    \
        break;                                           \
    }                                                    \
    return baseline::object;                             \
  }
#else
#define PAL_FAST_CHOOSE_INSTANCE(Type, function, object) \
  [[nodiscard]] const Type& function() { return baseline::object; }
#endif

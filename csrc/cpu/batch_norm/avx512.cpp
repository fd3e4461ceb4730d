// Batch normalisation's passes for AVX-512.
#include "cpu/batch_norm/includes.h"

#if defined(__x86_64__) && defined(__GNUC__)
// clang-format off: the order matters
#include "cpu/target_avx512.h"
#include "cpu/batch_norm/instances.h"
#include "cpu/target_end.h"
// clang-format on
#endif
